//! Who has exited, and how.
//!
//! The first process of a guest inherits every orphan, so it must wait for children that it never started; and a `waitpid(-1)`
//! takes whatever comes, so nothing else in the agent may wait for a child. This is the one place that does: it hands each
//! status to whoever has claimed the process.
//!
//! A process can exit before anybody knows its number (the number comes back from the program that forked it). So whoever is
//! about to start one says so first ([`Reaper::expect`]); while any such expectation is open, statuses that nobody has claimed are
//! kept for it. Others are dropped: they are orphans, and their numbers will be used again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + the signal's number for a process that a signal ended.
    pub status: u32,
    /// Unix time in nanoseconds.
    pub at_ns: i64,
}

/// Tells when a process has exited: `Some` from then on.
pub type ExitWatch = watch::Receiver<Option<Exit>>;

/// Statuses kept for open expectations at most; far more than processes are started at a time.
const MAX_EARLY: usize = 4096;

/// The one that waits for all children.
#[derive(Default)]
pub struct Reaper {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    claimed: HashMap<i32, watch::Sender<Option<Exit>>>,
    expectations: usize,
    early: HashMap<i32, Exit>,
}

impl Reaper {
    /// Begins to reap. From here on nothing else in this process may wait for children.
    ///
    /// # Errors
    /// When the signal handler cannot be installed. Must be called within a tokio runtime.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let signals = signal(SignalKind::child())?;
        tokio::spawn(reaper.clone().run(signals));
        Ok(reaper)
    }

    async fn run(self: Arc<Self>, mut signals: Signal) {
        // Signals merge, so each means: one child or more.
        while signals.recv().await.is_some() {
            self.reap();
        }
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            // Not nix's waitpid: it fails for a process that a real-time signal ended, after having reaped it.
            // SAFETY: the kernel writes one int to `status`, which lives through the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            match pid {
                1.. => self.exited(pid, exit_status(status)),
                0 => return,
                _ if Errno::last() == Errno::EINTR => {}
                _ => return,
            }
        }
    }

    fn exited(&self, pid: i32, status: u32) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let exit = Exit {
            status,
            at_ns: now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)),
        };
        let mut state = self.lock();
        if let Some(watch) = state.claimed.remove(&pid) {
            watch.send_replace(Some(exit));
        } else if state.expectations > 0 && state.early.len() < MAX_EARLY {
            state.early.insert(pid, exit);
        }
    }

    /// Announces that a process is about to be started, whose status must not be lost.
    pub fn expect(self: &Arc<Self>) -> Expectation {
        self.lock().expectations += 1;
        Expectation(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a shell would say of a wait status: 0 to 255, or 128 + the signal.
fn exit_status(wait_status: i32) -> u32 {
    let status = if libc::WIFSIGNALED(wait_status) {
        128 + libc::WTERMSIG(wait_status)
    } else {
        libc::WEXITSTATUS(wait_status)
    };
    status.unsigned_abs() & 0xff
}

/// A process that is being started. See [`Reaper::expect`].
pub struct Expectation(Arc<Reaper>);

impl Expectation {
    /// Claims the exit status of the process `pid`, a child that was started since the expectation began.
    pub fn claim(&self, pid: i32) -> ExitWatch {
        let mut state = self.0.lock();
        if let Some(exit) = state.early.remove(&pid) {
            return watch::channel(Some(exit)).1;
        }
        let (sender, receiver) = watch::channel(None);
        state.claimed.insert(pid, sender);
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.expectations = state.expectations.saturating_sub(1);
        if state.expectations == 0 {
            state.early.clear();
        }
    }
}

/// Waits until the process has exited.
pub async fn exited(watch: &mut ExitWatch) -> Exit {
    match watch.wait_for(Option::is_some).await.map(|exit| *exit) {
        Ok(Some(exit)) => exit,
        // The reaper lives as long as the agent; were it gone, nothing would be known.
        Ok(None) | Err(_) => Exit {
            status: 255,
            at_ns: 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_comes_before_the_claim_is_kept() {
        let reaper = Arc::new(Reaper::default());
        let expectation = reaper.expect();
        reaper.exited(7, 3);
        let exit = expectation.claim(7).borrow().unwrap();
        assert_eq!(exit.status, 3);
        assert!(exit.at_ns > 0);
    }

    #[test]
    fn a_status_that_comes_after_the_claim_is_delivered() {
        let reaper = Arc::new(Reaper::default());
        let watch = reaper.expect().claim(7);
        assert!(watch.borrow().is_none());
        reaper.exited(8, 1);
        assert!(watch.borrow().is_none());
        reaper.exited(7, 137);
        assert_eq!(watch.borrow().unwrap().status, 137);
    }

    #[test]
    fn orphans_are_forgotten_and_their_numbers_free() {
        let reaper = Arc::new(Reaper::default());
        reaper.exited(7, 3);
        let first = reaper.expect();
        assert!(first.claim(7).borrow().is_none());
        reaper.exited(9, 4);
        drop(first);
        assert!(reaper.expect().claim(9).borrow().is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let reaper = Arc::new(Reaper::default());
        let _expectation = reaper.expect();
        for pid in 0..2 * MAX_EARLY as i32 {
            reaper.exited(pid, 0);
        }
        assert_eq!(reaper.lock().early.len(), MAX_EARLY);
    }

    #[tokio::test]
    // The reaper waits: that is what is tested.
    #[allow(clippy::zombie_processes)]
    async fn reaps_real_children() {
        let reaper = Reaper::start().unwrap();
        for (script, status) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -40 $$", 168)] {
            let expectation = reaper.expect();
            let child = std::process::Command::new("/bin/sh")
                .args(["-c", script])
                .spawn()
                .unwrap();
            let mut watch = expectation.claim(i32::try_from(child.id()).unwrap());
            assert_eq!(exited(&mut watch).await.status, status);
        }
    }
}
