//! Where vCPUs wait while the VM is paused, and learn that it ends.
//!
//! ```text
//!            open                close
//!  Paused ─────────► Running ─────────► Ended
//!     ▲  ◄──────────    │                 ▲
//!     │      pause      │                 │
//!     └─────────────────┴── close ────────┘
//! ```
//!
//! The controller sets the phase it wants and then signals each vCPU's thread until every one has seen it: a signal that arrives
//! just before the guest is entered would be lost, so one is not enough.

use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// What vCPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Wait.
    Paused,
    /// Run guest code.
    Running,
    /// End.
    Ended,
}

/// The gate of one VM.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Each vCPU's thread, and whether it is in the guest or on its way there.
    vcpus: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    id: libc::pthread_t,
    inside: bool,
}

/// How long to wait for vCPUs before they are signalled again.
const PATIENCE: Duration = Duration::from_millis(2);

impl Default for Gate {
    fn default() -> Self {
        Gate::new()
    }
}

impl Gate {
    /// A gate in [`Phase::Paused`].
    pub fn new() -> Self {
        Gate {
            state: Mutex::new(State {
                phase: Phase::Paused,
                vcpus: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// What vCPUs are to do now.
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Sets what vCPUs are to do. Returns when all of them are out of the guest, unless that is where they are to be.
    /// [`Phase::Ended`] is for good.
    pub fn set(&self, phase: Phase) {
        let mut state = self.lock();
        if state.phase != Phase::Ended {
            state.phase = phase;
        }
        self.changed.notify_all();
        while state.phase != Phase::Running && state.vcpus.iter().any(|vcpu| vcpu.inside) {
            for vcpu in state.vcpus.iter().filter(|vcpu| vcpu.inside) {
                // SAFETY: a thread is `inside` only while it lives: it says that it is out before it ends.
                unsafe { libc::pthread_kill(vcpu.id, kick_signal()) };
            }
            state = self
                .changed
                .wait_timeout(state, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// For a vCPU's thread: makes it known.
    pub fn register(&self) -> Visitor<'_> {
        install_kick_handler();
        let mut state = self.lock();
        // SAFETY: no preconditions.
        let id = unsafe { libc::pthread_self() };
        state.vcpus.push(Thread { id, inside: false });
        Visitor {
            gate: self,
            index: state.vcpus.len() - 1,
            waited: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU's thread at the gate. When it is dropped, the thread is out.
#[derive(Debug)]
pub struct Visitor<'g> {
    gate: &'g Gate,
    index: usize,
    waited: bool,
}

impl Visitor<'_> {
    /// Waits while the VM is paused. [`Phase::Running`] means: into the guest.
    pub fn pass(&mut self) -> Phase {
        self.wait_while(|phase| phase == Phase::Paused)
    }

    /// Whether it has waited since this was last asked.
    pub fn has_waited(&mut self) -> bool {
        std::mem::take(&mut self.waited)
    }

    /// Waits for the VM's end: for a vCPU that can do no more.
    pub fn wait_for_end(&mut self) {
        self.wait_while(|phase| phase != Phase::Ended);
    }

    fn wait_while(&mut self, wait: impl Fn(Phase) -> bool) -> Phase {
        let mut state = self.gate.lock();
        if wait(state.phase) || state.phase == Phase::Ended {
            self.say(&mut state, false);
        }
        while wait(state.phase) {
            self.waited = true;
            state = self
                .gate
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let phase = state.phase;
        self.say(&mut state, phase == Phase::Running);
        phase
    }

    fn say(&self, state: &mut State, inside: bool) {
        if let Some(vcpu) = state.vcpus.get_mut(self.index) {
            vcpu.inside = inside;
        }
        self.gate.changed.notify_all();
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        self.say(&mut self.gate.lock(), false);
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// A handler that does nothing: the signal's only purpose is to interrupt KVM_RUN.
fn install_kick_handler() {
    static INSTALLED: Once = Once::new();
    extern "C" fn nothing(_: libc::c_int) {}
    INSTALLED.call_once(|| {
        // SAFETY: all zeros is a valid sigaction; the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    #[test]
    fn nobody_is_inside_once_a_pause_has_returned() {
        let gate = Arc::new(Gate::new());
        let rounds = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, rounds) = (gate.clone(), rounds.clone());
                thread::spawn(move || {
                    let mut visitor = gate.register();
                    while visitor.pass() == Phase::Running {
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            gate.set(Phase::Running);
            let before = rounds.load(Ordering::SeqCst);
            while rounds.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
            gate.set(Phase::Paused);
            let paused = rounds.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            assert_eq!(rounds.load(Ordering::SeqCst), paused);
        }
        gate.set(Phase::Ended);
        gate.set(Phase::Running);
        assert_eq!(gate.phase(), Phase::Ended, "the end is for good");
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_thread_that_blocks_inside_is_kicked_out() {
        let gate = Arc::new(Gate::new());
        let inner = gate.clone();
        let thread = thread::spawn(move || {
            let mut visitor = inner.register();
            while visitor.pass() == Phase::Running {
                // SAFETY: pause only waits for a signal, as KVM_RUN does.
                unsafe { libc::pause() };
            }
        });
        gate.set(Phase::Running);
        gate.set(Phase::Ended);
        thread.join().unwrap();
    }
}
