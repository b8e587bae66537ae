//! A process that can be named in a file and found again.
//!
//! A process id is used anew when its process has gone. Together with the time at which the process started, it is
//! not: that is what the state file holds, and nothing is killed unless both agree.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::pidfd;

/// A process id with the start time (field 22 of `/proc/<pid>/stat`, in clock ticks since boot).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// When it started.
    pub start: u64,
}

impl ProcessIdentity {
    /// The identity of the process that has the id `pid` now.
    pub fn of(pid: u32) -> Option<Self> {
        let start = start_time(pid)?;
        Some(Self { pid, start })
    }

    /// Opens the process if it still exists.
    fn open(self) -> Option<OwnedFd> {
        // The descriptor first, the check second: afterwards the descriptor stands for the process that was checked.
        let fd = pidfd::open(self.pid).ok()?;
        (start_time(self.pid) == Some(self.start)).then_some(fd)
    }

    /// Whether the process still exists.
    #[cfg(test)]
    pub fn is_alive(self) -> bool {
        self.open()
            .is_some_and(|fd| !pidfd::wait(&fd, std::time::Duration::ZERO))
    }

    /// Kills the process if it still exists, and waits until it has ended, at most until `deadline`.
    /// Answers whether it is gone.
    pub fn kill(self, deadline: Instant) -> bool {
        let Some(fd) = self.open() else {
            return true;
        };
        if let Err(error) = pidfd::kill(&fd) {
            log::warn!("cannot kill process {}: {error}", self.pid);
        }
        pidfd::wait(&fd, deadline.saturating_duration_since(Instant::now()))
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn kills_the_process_that_it_names_and_no_other() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        let recycled = ProcessIdentity {
            start: identity.start + 1,
            ..identity
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(!recycled.is_alive());
        assert!(recycled.kill(deadline), "what is not there is gone");
        assert!(
            child.try_wait().unwrap().is_none(),
            "the wrong process was killed"
        );
        assert!(identity.kill(deadline));
        assert!(!child.wait().unwrap().success());
        assert!(!identity.is_alive());
        assert!(identity.kill(deadline));
    }
}
