//! A VM's life: built in one order, run until something ends it, taken apart in the reverse order.
//!
//! The order of building matters in places: RAM is registered before the interrupt controllers exist, devices are on their buses
//! before the first vCPU runs, and what can fail for the user's sake (files, sockets) fails before that as well.

mod build;
mod signals;
mod terminal;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use vmm_sys_util::eventfd::EventFd;

use crate::config::{VmConfig, VmName};
use crate::control::service::Server;
use crate::control::{Message, Request, Status};
use crate::devices::{console, virtio};
use crate::socket::Unlink;
use crate::vcpu::{Gate, Phase, Vcpu};
use crate::{arch, boot, bus, irq, memory, pci};

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself.
    Reset,
    /// The guest took a fault that it could not handle.
    TripleFault,
    /// A client or a signal ended it.
    Killed,
    /// The VMM could not go on, and why.
    Failed(String),
}

impl Outcome {
    /// The VMM cannot go on because of `reason`.
    pub fn failed(reason: impl Into<String>) -> Self {
        Outcome::Failed(reason.into())
    }

    /// The exit status of a VMM whose VM ended so. 2 is a usage error's.
    pub fn exit_status(&self) -> u8 {
        match self {
            Outcome::PoweredOff => 0,
            Outcome::Failed(_) => 1,
            Outcome::Reset => 3,
            Outcome::TripleFault => 4,
            Outcome::Killed => 137,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PoweredOff => f.write_str("the guest powered off"),
            Outcome::Reset => f.write_str("the guest reset itself"),
            Outcome::TripleFault => f.write_str("the guest crashed (triple fault)"),
            Outcome::Killed => f.write_str("the VM was killed"),
            Outcome::Failed(reason) => f.write_str(reason),
        }
    }
}

/// Why a VM could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No KVM.
    #[error("cannot open /dev/kvm; `orlop doctor` says what is missing")]
    Kvm(#[source] kvm_ioctls::Error),
    /// A KVM that is too old or too different.
    #[error("/dev/kvm speaks API version {0}, and 12 is needed; `orlop doctor` says more")]
    KvmVersion(i32),
    /// KVM refused something.
    #[error("KVM cannot {0}")]
    KvmRefused(&'static str, #[source] kvm_ioctls::Error),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Kernel, initramfs, command line.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] arch::x86_64::acpi::Error),
    /// A vCPU's first state.
    #[error(transparent)]
    Registers(#[from] arch::x86_64::regs::Error),
    /// CPUID.
    #[error("the list of CPUID leaves is too long")]
    Cpuid(#[source] vmm_sys_util::fam::Error),
    /// Interrupts.
    #[error(transparent)]
    Irq(#[from] irq::Error),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// PCI.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// The console.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] virtio::blk::OpenError),
    /// Randomness.
    #[error(transparent)]
    Rng(#[from] virtio::rng::OpenError),
    /// The vsock.
    #[error(transparent)]
    Vsock(#[from] virtio::vsock::CreateError),
    /// A shared directory.
    #[error(transparent)]
    Fs(#[from] virtio::fs::CreateError),
    /// The control socket.
    #[error("cannot listen on the control socket {path}")]
    ControlSocket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread, an eventfd.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
}

/// Builds the VM and runs it to its end.
///
/// # Errors
/// When it cannot be built. What happens afterwards is an [`Outcome`].
pub fn run(config: VmConfig) -> Result<Outcome, Error> {
    let (sender, messages) = mpsc::channel();
    // Before any thread exists, so that all of them leave these signals to the one that waits for them.
    signals::to_controller(sender.clone()).map_err(|e| Error::System("wait for signals", e))?;
    let vm = Vm::build(config, sender)?;
    Ok(vm.run(messages))
}

/// A VM whose vCPUs stand before their first instruction.
struct Vm {
    name: VmName,
    ram: u64,
    gate: Arc<Gate>,
    vcpus: Vec<Vcpu>,
    pci: Arc<pci::Root>,
    power_button: EventFd,
    console: Arc<console::Console>,
    console_writer: Option<console::Writer>,
    /// Restores the terminal when dropped.
    terminal: Option<terminal::Raw>,
    server: Server,
    /// What is removed at the end.
    paths: Vec<Unlink>,
}

impl Vm {
    /// Lets the vCPUs go, and serves the controller's messages until one of them is the end.
    fn run(self, messages: Receiver<Message>) -> Outcome {
        self.gate.set(Phase::Running);
        let outcome = self.control(&messages);
        log::info!("{}: {outcome}", self.name.as_str());
        self.end(&outcome);
        outcome
    }

    /// The one place that changes a running VM.
    fn control(&self, messages: &Receiver<Message>) -> Outcome {
        loop {
            match messages.recv() {
                Ok(Message::Ended(outcome)) => return outcome,
                Ok(Message::Request(request)) => {
                    if let Some(outcome) = self.serve(request) {
                        return outcome;
                    }
                }
                // The signals' thread keeps a sender for ever.
                Err(mpsc::RecvError) => return Outcome::failed("the VM has lost its threads"),
            }
        }
    }

    /// Does what a client asks. A client that has gone does not hear the answer, and nothing else follows from that.
    fn serve(&self, request: Request) -> Option<Outcome> {
        match request {
            Request::Describe(reply) => {
                let _ = reply.send(self.status());
            }
            Request::Pause(reply) => {
                self.gate.set(Phase::Paused);
                let _ = reply.send(());
            }
            Request::Resume(reply) => {
                self.gate.set(Phase::Running);
                let _ = reply.send(());
            }
            Request::PowerButton(reply) => {
                // It fails only when the eventfd is full, and then the button is being pressed anyway.
                let _ = self.power_button.write(1);
                let _ = reply.send(());
            }
            Request::Kill(reply) => {
                let _ = reply.send(());
                return Some(Outcome::Killed);
            }
        }
        None
    }

    fn status(&self) -> Status {
        Status {
            name: self.name.as_str().into(),
            paused: self.gate.phase() == Phase::Paused,
            vcpus: u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX),
            memory: self.ram,
            devices: self.pci.describe(),
        }
    }

    /// vCPUs first, then devices, then those who look on.
    fn end(self, outcome: &Outcome) {
        self.gate.set(Phase::Ended);
        for vcpu in self.vcpus {
            vcpu.join();
        }
        self.pci.stop();
        drop(self.pci);
        drop(self.console);
        if let Some(writer) = self.console_writer {
            writer.finish();
        }
        drop(self.terminal);
        self.server.stop(outcome.clone());
        drop(self.paths);
    }
}

/// Where messages to the controller come from.
type Controller = Sender<Message>;
