//! Control of a running VM: one place that changes it, and a thin gRPC skin around.
//!
//! Everything that can happen to a VM arrives as a [`Message`] in one queue: what vCPUs and devices report, and what clients ask.
//! The controller ([`crate::vm::Vm::control`]) takes one after the other, so no two changes ever meet.

pub mod service;

use tokio::sync::oneshot;

use crate::pci::Description;
use crate::vm::Outcome;

/// Something for the controller.
#[derive(Debug)]
pub enum Message {
    /// The VM has come to its end, or must.
    Ended(Outcome),
    /// A client asks.
    Request(Request),
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<T>;

/// What a client may ask.
#[derive(Debug)]
pub enum Request {
    /// How does the VM do?
    Describe(Reply<Status>),
    /// Stop the vCPUs.
    Pause(Reply<()>),
    /// Let them go on.
    Resume(Reply<()>),
    /// Press the power button.
    PowerButton(Reply<()>),
    /// End the VM.
    Kill(Reply<()>),
}

/// How a VM does.
#[derive(Debug)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Whether its vCPUs are paused.
    pub paused: bool,
    /// How many it has.
    pub vcpus: u8,
    /// Its RAM in bytes.
    pub memory: u64,
    /// What is on its PCI bus.
    pub devices: Vec<Description>,
}
