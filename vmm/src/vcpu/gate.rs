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
//!
//! Besides, a vCPU that the guest has let go of is *parked*: it waits whatever the phase is, until the end.

use std::collections::BTreeSet;
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
    /// Those that wait whatever the phase.
    parked: BTreeSet<u8>,
    /// Each vCPU's thread, and whether it is in the guest or on its way there.
    vcpus: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    vcpu: u8,
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
                parked: BTreeSet::new(),
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
        self.wait_until_out(state);
    }

    /// Has a vCPU wait whatever the phase is, and returns when it is out of the guest.
    pub fn park(&self, vcpu: u8) {
        let mut state = self.lock();
        state.parked.insert(vcpu);
        self.wait_until_out(state);
    }

    /// Lets a vCPU go on that was parked, as the phase allows.
    pub fn unpark(&self, vcpu: u8) {
        self.lock().parked.remove(&vcpu);
        self.changed.notify_all();
    }

    /// Kicks those that are in the guest and may not be, until none is.
    fn wait_until_out(&self, mut state: MutexGuard<'_, State>) {
        while state.strays().next().is_some() {
            for thread in state.strays() {
                // SAFETY: a thread is `inside` only while it lives: it says that it is out before it ends.
                unsafe { libc::pthread_kill(thread.id, kick_signal()) };
            }
            state = self
                .changed
                .wait_timeout(state, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// For the thread of a vCPU: makes it known.
    pub fn register(&self, vcpu: u8) -> Visitor<'_> {
        install_kick_handler();
        let mut state = self.lock();
        // SAFETY: no preconditions.
        let id = unsafe { libc::pthread_self() };
        state.vcpus.push(Thread {
            vcpu,
            id,
            inside: false,
        });
        Visitor {
            gate: self,
            vcpu,
            index: state.vcpus.len() - 1,
            waited: false,
            parked: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a vCPU may be in the guest.
    fn admits(&self, vcpu: u8) -> bool {
        self.phase == Phase::Running && !self.parked.contains(&vcpu)
    }

    /// Those that are in the guest and may not be.
    fn strays(&self) -> impl Iterator<Item = &Thread> {
        let threads = self.vcpus.iter();
        threads.filter(|thread| thread.inside && !self.admits(thread.vcpu))
    }
}

/// A vCPU's thread at the gate. When it is dropped, the thread is out.
#[derive(Debug)]
pub struct Visitor<'g> {
    gate: &'g Gate,
    vcpu: u8,
    index: usize,
    waited: bool,
    parked: bool,
}

impl Visitor<'_> {
    /// Waits while the VM is paused, or the vCPU is parked. [`Phase::Running`] means: into the guest.
    pub fn pass(&mut self) -> Phase {
        let vcpu = self.vcpu;
        self.wait_while(|state| !state.admits(vcpu))
    }

    /// Whether it was parked since this was last asked.
    pub fn was_parked(&mut self) -> bool {
        std::mem::take(&mut self.parked)
    }

    /// Whether it has waited since this was last asked.
    pub fn has_waited(&mut self) -> bool {
        std::mem::take(&mut self.waited)
    }

    /// Waits for the VM's end: for a vCPU that can do no more.
    pub fn wait_for_end(&mut self) {
        self.wait_while(|_| true);
    }

    /// Waits as long as `wait` says, but not beyond the end.
    fn wait_while(&mut self, wait: impl Fn(&State) -> bool) -> Phase {
        let mut state = self.gate.lock();
        if wait(&state) || state.phase == Phase::Ended {
            self.say(&mut state, false);
        }
        while wait(&state) && state.phase != Phase::Ended {
            self.waited = true;
            self.parked |= state.parked.contains(&self.vcpu);
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
            .map(|vcpu| {
                let (gate, rounds) = (gate.clone(), rounds.clone());
                thread::spawn(move || {
                    let mut visitor = gate.register(vcpu);
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
            let mut visitor = inner.register(0);
            while visitor.pass() == Phase::Running {
                // SAFETY: pause only waits for a signal, as KVM_RUN does.
                unsafe { libc::pause() };
            }
        });
        gate.set(Phase::Running);
        gate.set(Phase::Ended);
        thread.join().unwrap();
    }

    #[test]
    fn a_parked_vcpu_waits_alone_until_it_is_wanted_or_all_is_over() {
        let gate = Arc::new(Gate::new());
        let rounds: [Arc<AtomicU64>; 2] = Default::default();
        let mut threads = Vec::new();
        for (vcpu, rounds) in (0..).zip(rounds.clone()) {
            let gate = gate.clone();
            threads.push(thread::spawn(move || {
                let mut visitor = gate.register(vcpu);
                let mut parked = 0;
                while visitor.pass() == Phase::Running {
                    parked += u32::from(visitor.was_parked());
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
                parked
            }));
        }
        let moves = |vcpu: usize| {
            let before = rounds[vcpu].load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            rounds[vcpu].load(Ordering::SeqCst) != before
        };
        gate.set(Phase::Running);
        while rounds
            .iter()
            .any(|rounds| rounds.load(Ordering::SeqCst) == 0)
        {
            thread::yield_now();
        }
        gate.park(1);
        assert!(!moves(1) && moves(0));
        gate.set(Phase::Paused);
        gate.set(Phase::Running);
        assert!(!moves(1) && moves(0));
        gate.unpark(1);
        while !moves(1) {}
        gate.park(1);
        gate.set(Phase::Ended);
        let parked: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
        assert_eq!(parked, [0, 1], "the second time it ended at the gate");
    }
}
