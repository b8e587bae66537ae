//! Control of a running VM: one place that changes it, and a thin gRPC skin around.
//!
//! Everything that can happen to a VM arrives as a [`Message`] in one queue: what vCPUs and devices report, and what clients ask.
//! The controller ([`crate::vm::Vm::control`]) takes one after the other, so no two changes ever meet.

pub mod news;
pub mod service;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

use tokio::sync::oneshot;

use crate::config::{ConsoleDevice, DeviceConfig, HostAddress, VcpuCount};
use crate::devices::console::NoSize;
use crate::memory::Sharing;
use crate::pci::{Description, DeviceNumber};
use crate::vm::{Ejected, Outcome};

/// Something for the controller.
#[derive(Debug)]
pub enum Message {
    /// The guest has come to its end, in this one of its lives.
    GuestEnded(Life, Outcome),
    /// The guest has let go of a device, in this one of its lives.
    Ejected(Life, Ejected),
    /// The guest has let go of a vCPU, in this one of its lives.
    VcpuEjected(Life, u8),
    /// The host wants a device of its own back.
    Recalled(HostAddress),
    /// The VM must end: a signal, or whoever sits at its console.
    Kill,
    /// The terminal that the VMM runs on has another size.
    TerminalResized,
    /// A client asks.
    Request(Request),
}

/// The lives of a guest, counted from its first boot: each reset begins another. What one of them still has to say when the next has
/// begun is of no interest any more.
pub type Life = u32;

/// How the parts of a guest's machine say that it, or one of its devices, has come to its end.
#[derive(Clone, Debug)]
pub struct EndOfLife {
    controller: Sender<Message>,
    life: Life,
}

impl EndOfLife {
    /// For the machine of the guest's `life`.
    pub fn new(controller: Sender<Message>, life: Life) -> Self {
        EndOfLife { controller, life }
    }

    /// Tells the controller how it ended. The first to say so is heard.
    pub fn tell(&self, outcome: Outcome) {
        // Without a controller the VM is ending already.
        let _ = self
            .controller
            .send(Message::GuestEnded(self.life, outcome));
    }

    /// Hands over a device that the guest has let go of.
    pub fn eject(&self, device: Ejected) {
        // As above; the device ends here, then.
        let _ = self.controller.send(Message::Ejected(self.life, device));
    }

    /// Says that the guest has let go of a vCPU.
    pub fn eject_vcpu(&self, id: u8) {
        // As above.
        let _ = self.controller.send(Message::VcpuEjected(self.life, id));
    }
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<T>;

/// Hears that something is done which takes its time; or, by the other end's going away, that it will not be: the guest was reset, or is to
/// do something else.
pub type Done = oneshot::Receiver<()>;

/// Why a client does not get what it asks for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no guest yet that could hear anything.
    #[error("the VM has not booted yet; `orlop boot` has it boot")]
    NotBooted,
    /// A guest that stands still hears nothing.
    #[error("the VM is paused, and its guest cannot hear of {0}; resume it first")]
    Paused(&'static str),
    /// Nothing is there that could be taken away.
    #[error("there is no device at {0}; `orlop inspect` lists those that there are")]
    NoDevice(DeviceNumber),
    /// The bus is full.
    #[error("there is no place for another device; remove one first")]
    NoPlace,
    /// The VM was started without one.
    #[error(
        "the VM has no balloon: it was started with --balloon off, or with a device of the host's"
    )]
    NoBalloon,
    /// What the guest would give up stays where it is.
    #[error(
        "the VM's memory stays where it is while it has a device of the host's, which reaches it: remove the device first"
    )]
    Pinned,
    /// What the guest would give up stays the VM's.
    #[error(
        "the VM's memory is in huge pages, which stay the VM's whatever its guest gives up: start it without hugepages="
    )]
    HugePages,
    /// A backend could not see it.
    #[error(
        "the VM's memory is private, and a vhost-user backend cannot see it: start the VM with --memory SIZE,shared"
    )]
    NotShared,
    /// The guest could not tell the two apart.
    #[error("the VM has a shared directory with the tag {0} already; give this one another")]
    TagTaken(String),
    /// The guest would have nothing left.
    #[error("the balloon cannot have all of the VM's {memory_mib} MiB; give it less")]
    BalloonSize {
        /// The VM's RAM in MiB.
        memory_mib: u64,
    },
    /// The VM was started without room for more.
    #[error(
        "the VM's vCPUs are as many as it was started with; start it with --cpus N,max=N for another number"
    )]
    FixedVcpus,
    /// More than it was started for.
    #[error("the VM can have 1 to {most} vCPUs; it was started with max={most}")]
    TooManyVcpus {
        /// Its limit.
        most: u8,
    },
    /// The VM was started without room for more.
    #[error(
        "the VM's memory is as large as it was started with; start it with --memory SIZE,max=SIZE for another size"
    )]
    FixedMemory,
    /// Less than it was started with, or more than it was started for.
    #[error(
        "the VM can have {least_mib} to {most_mib} MiB of memory, as it was started; a balloon takes more of it: `orlop balloon`"
    )]
    MemorySize {
        /// What it has at least, in MiB.
        least_mib: u64,
        /// What it may have, in MiB.
        most_mib: u64,
    },
    /// Neither more nor less by whole blocks.
    #[error("memory comes and goes by {block_mib} MiB")]
    MemoryBlock {
        /// A block's size in MiB.
        block_mib: u64,
    },
    /// The VM was started with another console.
    #[error(transparent)]
    NoSize(#[from] NoSize),
    /// What the host says, on one line.
    #[error("{0}")]
    Host(String),
}

/// What a client may ask.
#[derive(Debug)]
pub enum Request {
    /// How does the VM do?
    Describe(Reply<Status>),
    /// Have the guest boot, if it has not yet.
    Boot(Reply<()>),
    /// Stop the vCPUs.
    Pause(Reply<Result<(), Refusal>>),
    /// Let them go on.
    Resume(Reply<Result<(), Refusal>>),
    /// Have the guest boot again.
    Reset(Reply<Result<(), Refusal>>),
    /// Press the power button.
    PowerButton(Reply<Result<(), Refusal>>),
    /// Give the guest another device, which may be on files that are handed over, by their numbers.
    AddDevice(
        DeviceConfig,
        Vec<OwnedFd>,
        Reply<Result<DeviceNumber, Refusal>>,
    ),
    /// Have the guest let go of a device.
    RemoveDevice(DeviceNumber, Reply<Result<Done, Refusal>>),
    /// Have the guest have other numbers of vCPUs and bytes.
    Resize(Resize, Reply<Result<Vec<Done>, Refusal>>),
    /// Have the balloon be so many bytes.
    SetBalloon(u64, Reply<Result<(), Refusal>>),
    /// End the VM.
    Kill(Reply<()>),
}

/// What a VM is to have, where that is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// So many vCPUs.
    pub vcpus: Option<VcpuCount>,
    /// So many bytes of memory.
    pub memory: Option<u64>,
}

/// Where a VM is between boot and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All is there, and the guest has not begun to boot.
    Created,
    /// The vCPUs run.
    Running,
    /// They stand still.
    Paused,
}

/// How a VM does.
#[derive(Debug)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Where it is between boot and end.
    pub state: State,
    /// How many it has.
    pub vcpus: usize,
    /// How many it can have.
    pub most_vcpus: u8,
    /// The memory that it has, in bytes.
    pub memory: u64,
    /// What it is to have.
    pub wanted_memory: u64,
    /// What it can have.
    pub most_memory: u64,
    /// What that is made of.
    pub sharing: Sharing,
    /// Which device its console is.
    pub console: ConsoleDevice,
    /// The pseudo-terminal that the console goes to, if any.
    pub pty: Option<PathBuf>,
    /// What is on its PCI bus.
    pub devices: Vec<Description>,
    /// How often its vCPUs have left the guest since it booted, by reason.
    pub exits: Vec<(&'static str, u64)>,
}
