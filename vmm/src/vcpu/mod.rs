//! The vCPU threads: guest code, until it needs something from us.
//!
//! An exit comes in as a value and an [`Action`] goes out; the loop around does the rest. A vCPU thread does no I/O of its own.
//! Whether vCPUs run, pause or end is decided by the VM's controller alone, through the [`Gate`] that each of them passes between
//! two entries of the guest.

mod coalesced;
pub mod exits;
mod gate;
mod stopped;

use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use coalesced::Coalesced;
use exits::{ExitKind, Exits};
pub use gate::{Gate, Phase};

use crate::arch::x86_64::layout;
use crate::bus::Bus;
use crate::control::EndOfLife;
use crate::vm::Outcome;

/// The address spaces that exits lead to.
pub struct Buses {
    ports: Bus,
    memory: Bus,
    /// Writes that came before whatever a port is used for next; there are none where KVM does not keep them.
    coalesced: OnceLock<Coalesced>,
}

impl Buses {
    /// Those of a machine without vCPUs yet.
    pub fn new(ports: Bus, memory: Bus) -> Self {
        Buses {
            ports,
            memory,
            coalesced: OnceLock::new(),
        }
    }

    /// Has KVM keep what is written to the address port of PCI's configuration space. `vcpu` is the first of the VM's.
    pub fn coalesce(&self, vm: &VmFd, vcpu: &VcpuFd) {
        match Coalesced::writes_to(layout::PCI_CONFIG_PORT, vm, vcpu) {
            // Another life of the guest has other buses, and another ring.
            Ok(ring) => drop(self.coalesced.set(ring)),
            Err(error) => log::info!("each write to PCI's address port is an exit: {error}"),
        }
    }

    /// The ports, with all that was written to them before.
    fn ports(&self) -> &Bus {
        if let Some(ring) = self.coalesced.get() {
            ring.deliver(&self.ports);
        }
        &self.ports
    }
}

/// What follows from an exit.
#[derive(Debug)]
enum Action {
    /// Enter the guest again.
    Continue,
    /// The VM ends, and this is how.
    End(Outcome),
}

/// A vCPU's thread.
#[derive(Debug)]
pub struct Vcpu {
    thread: JoinHandle<()>,
    exits: Arc<Exits>,
}

impl Vcpu {
    /// Starts vCPU `id`. It waits at the gate until that opens.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn spawn(
        id: u8,
        mut fd: VcpuFd,
        buses: Arc<Buses>,
        gate: Arc<Gate>,
        end: EndOfLife,
    ) -> std::io::Result<Self> {
        let exits = Arc::new(Exits::default());
        let counted = exits.clone();
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let mut visitor = gate.register(id);
                while visitor.pass() == Phase::Running {
                    if visitor.was_parked() {
                        await_start_up(&fd);
                    }
                    if visitor.has_waited() {
                        excuse(&fd);
                    }
                    match run(&mut fd, &buses, &counted) {
                        Action::Continue => {}
                        Action::End(outcome) => {
                            end.tell(outcome);
                            visitor.wait_for_end();
                        }
                    }
                }
            })?;
        Ok(Vcpu { thread, exits })
    }

    /// How often it has left the guest.
    pub fn exits(&self) -> &Exits {
        &self.exits
    }

    /// Waits for the thread, which ends once the gate is closed for good.
    pub fn join(self) {
        // A panic of a vCPU thread has been reported by then, and the VM is ending.
        let _ = self.thread.join();
    }
}

/// Has the guest's watchdogs know that it stood still, so that they do not take that for a lockup (KVM's API, 4.68).
fn excuse(fd: &VcpuFd) {
    // It fails when the guest has no kvmclock, as before its first instruction: there is nobody to tell, then.
    let _ = fd.kvmclock_ctrl();
}

/// Has a vCPU that the guest had let go of forget what it did, and wait for INIT and SIPI, as one that was just made.
fn await_start_up(fd: &VcpuFd) {
    let state = kvm_bindings::kvm_mp_state {
        mp_state: kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
    };
    if let Err(error) = fd.set_mp_state(state) {
        log::warn!("a vCPU that comes again goes on where it was: {error}");
    }
}

/// Enters the guest once, and serves what made it exit.
fn run(fd: &mut VcpuFd, buses: &Buses, exits: &Exits) -> Action {
    let exit = fd.run();
    exits.count(ExitKind::of(&exit));
    let exit = match exit {
        Ok(exit) => exit,
        Err(error) => return interrupted(error),
    };
    match exit {
        VcpuExit::IoIn(port, data) => buses.ports().read(u64::from(port), data),
        VcpuExit::IoOut(port, data) => buses.ports().write(u64::from(port), data),
        VcpuExit::MmioRead(address, data) => buses.memory.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.memory.write(address, data),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => {}
        VcpuExit::Shutdown => {
            log::warn!("the guest crashed: {}", stopped::place(fd));
            return Action::End(Outcome::TripleFault);
        }
        VcpuExit::InternalError => {
            return Action::End(Outcome::failed(stopped::by_internal_error(fd)));
        }
        VcpuExit::SystemEvent(kind, _) => return system_event(kind),
        VcpuExit::FailEntry(reason, _) => {
            return Action::End(Outcome::failed(format!(
                "the processor refused to enter the guest (reason {reason:#x})"
            )));
        }
        other => {
            let other = format!("{other:?}");
            return Action::End(Outcome::failed(format!("KVM stopped the guest: {other}")));
        }
    }
    Action::Continue
}

/// A signal is how the controller gets a vCPU's attention; anything else is the end.
fn interrupted(error: kvm_ioctls::Error) -> Action {
    match error.errno() {
        libc::EINTR | libc::EAGAIN => Action::Continue,
        _ => Action::End(Outcome::failed(format!("KVM_RUN failed: {error}"))),
    }
}

fn system_event(kind: u32) -> Action {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Action::End(Outcome::PoweredOff),
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Action::End(Outcome::Reset),
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Action::End(Outcome::TripleFault),
        other => Action::End(Outcome::failed(format!(
            "KVM reported system event {other}"
        ))),
    }
}
