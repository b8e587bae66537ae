//! Virtio 1.2 devices: what they are ([`Device`]), what they work on ([`Active`]), and the threads that they work in ([`worker`]).
//!
//! The way of a request: the driver puts a buffer chain into a [`queue`] and kicks; the kick is an eventfd that KVM signals
//! without leaving the kernel; the device's own thread takes the chain, does the work, completes it and interrupts by another
//! eventfd. No vCPU thread takes part, and no lock is taken on the way.
//!
//! A device is first *idle*: it answers what it is, and no thread runs. When the driver says DRIVER_OK, the [`transport`] hands it
//! an [`Active`]: guest memory, its queues, their eventfds. On a reset the transport takes it back to idle with [`Device::stop`].
//! The transport never looks into a device, and a device never sees its transport.
//!
//! The guest is hostile. What it gets wrong is an error that ends in [`Fault::raise`]: the device stops, asks for a reset by
//! DEVICE_NEEDS_RESET (virtio 1.2, 2.1.1), and nothing else in the VM notices.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod fs;
pub mod guest_io;
pub mod interrupt;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod test_driver;
pub mod transport;
pub mod vsock;
pub mod worker;

use std::borrow::Cow;
use std::sync::Arc;

pub use crate::memory::GuestMemory;
pub use interrupt::{Fault, Interrupt};
pub use queue::Queue;
use vmm_sys_util::eventfd::EventFd;
use worker::{Events, Wake};

/// VIRTIO_F_INDIRECT_DESC: chains may be in tables of their own (virtio 1.2, 2.7.5.3). Every [`Queue`] understands them.
pub const F_RING_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX: both sides say when they want the next event (virtio 1.2, 2.7.10). Every [`Queue`] understands it.
pub const F_RING_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1: not a legacy device (virtio 1.2, 6). Offered by the transport for every device.
pub const F_VERSION_1: u64 = 1 << 32;

/// The device types that exist here, by their numbers in virtio 1.2, 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// 5.1
    Net = 1,
    /// 5.2
    Block = 2,
    /// 5.3
    Console = 3,
    /// 5.4
    Entropy = 4,
    /// 5.5
    Balloon = 5,
    /// 5.10
    Vsock = 19,
    /// 5.15
    Memory = 24,
    /// 5.11
    FileSystem = 26,
}

impl Kind {
    /// The name that people use, such as `virtio-blk`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Net => "virtio-net",
            Kind::Block => "virtio-blk",
            Kind::Console => "virtio-console",
            Kind::Entropy => "virtio-rng",
            Kind::Balloon => "virtio-balloon",
            Kind::Vsock => "virtio-vsock",
            Kind::Memory => "virtio-mem",
            Kind::FileSystem => "virtio-fs",
        }
    }
}

/// A virtio device behind whichever transport.
pub trait Device: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The feature bits that it offers beside [`F_VERSION_1`].
    fn features(&self) -> u64;

    /// Those among them that a driver must take: without one of these, it does not get to FEATURES_OK.
    fn required_features(&self) -> u64 {
        0
    }

    /// The largest size of each of its queues; a power of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration space as it is now (virtio 1.2, 2.5), little-endian. Reads beyond its end give zeros.
    fn config(&self) -> Cow<'_, [u8]>;

    /// A number that is another one whenever the configuration space has changed (virtio 1.2, 2.5.1), by which a driver knows that it
    /// must read once more. A device that changes its space also triggers [`Active::config_changed`].
    fn config_generation(&self) -> u8 {
        0
    }

    /// The driver wrote to the configuration space. Most devices have nothing there to write, and ignore it.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready: begin to work, on threads of the device's own.
    ///
    /// # Errors
    /// When it cannot begin; it is then idle still, and the transport raises the fault.
    fn start(&mut self, active: Active) -> Result<(), StartError>;

    /// Stop working and let go of guest memory and queues; when this returns, none of them is touched again.
    /// Stopping an idle device changes nothing.
    fn stop(&mut self);

    /// By what the guest knows it, where that is something that the user chose.
    fn tag(&self) -> Option<&str> {
        None
    }

    /// What it has done so far, by name. Cheap to keep: relaxed atomics.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver did not enable a queue that the device cannot do without.
    #[error("queue {0} is not enabled")]
    MissingQueue(usize),
    /// A thread, an eventfd or an epoll could not be had.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The program behind a vhost-user socket.
    #[error("the vhost-user backend did not take {what}")]
    Backend {
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        #[source]
        source: vhost::Error,
    },
}

/// What a running device works on.
pub struct Active {
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// The features that both sides agreed on.
    pub features: u64,
    /// The queues in order; `None` for one that the driver left disabled.
    pub queues: Vec<Option<ActiveQueue>>,
    /// For what the guest gets wrong.
    pub fault: Fault,
    /// To be triggered when the configuration space has changed (virtio 1.2, 4.1.5.4).
    pub config_changed: Interrupt,
}

impl Active {
    /// Takes queue `index`.
    ///
    /// # Errors
    /// [`StartError::MissingQueue`] when the driver left it disabled.
    pub fn take_queue(&mut self, index: usize) -> Result<ActiveQueue, StartError> {
        self.queues
            .get_mut(index)
            .and_then(Option::take)
            .ok_or(StartError::MissingQueue(index))
    }
}

/// The token under which [`ActiveQueue::work`] waits for kicks.
const KICK: u64 = 0;

/// A queue with its two events.
pub struct ActiveQueue {
    /// The rings.
    pub queue: Queue,
    /// Signalled when the driver has made buffers available.
    pub kick: EventFd,
    /// To be triggered when buffers have been used.
    pub interrupt: Interrupt,
}

impl ActiveQueue {
    /// The life of a worker that has this one queue: serves it whenever the driver kicks, until the device is stopped. What goes
    /// wrong before that is raised as a fault, and ends it too.
    pub fn work<E: std::error::Error + From<queue::Error>>(
        mut self,
        memory: &GuestMemory,
        events: &mut Events,
        fault: &Fault,
        mut serve: impl FnMut(&queue::Chain) -> Result<u32, E>,
    ) {
        if let Err(source) = events.add_signal(&self.kick, KICK) {
            fault.raise(&StartError::System {
                what: "wait for kicks",
                source,
            });
            return;
        }
        // Buffers that were made available before the device started may have been announced to nobody.
        let mut more = true;
        loop {
            if more {
                match self.serve(memory, &mut serve) {
                    Ok(rest) => more = rest,
                    Err(error) => {
                        fault.raise(&error);
                        return;
                    }
                }
            }
            for wake in events.wait(if more { 0 } else { -1 }) {
                match wake {
                    Wake::Stop => return,
                    Wake::Ready(..) => more = true,
                }
            }
        }
    }

    /// Serves every chain that is available: `serve` does the work and says how many bytes it wrote. Kicks are off meanwhile;
    /// the driver is interrupted once, at the end, if it wants to be.
    ///
    /// At most one queue's length of chains is served a round, so a driver that refills as fast as it is served cannot keep
    /// the caller from its other events: `true` says that more is waiting, and the caller must come back without a kick.
    ///
    /// # Errors
    /// What the guest got wrong; the device cannot go on.
    pub fn serve<E: From<queue::Error>>(
        &mut self,
        memory: &GuestMemory,
        mut serve: impl FnMut(&queue::Chain) -> Result<u32, E>,
    ) -> Result<bool, E> {
        self.queue.disable_kicks(memory)?;
        let mut more = true;
        let mut used = false;
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop(memory)? else {
                if self.queue.enable_kicks(memory)? {
                    continue;
                }
                more = false;
                break;
            };
            let written = serve(&chain)?;
            self.queue.complete(memory, chain.head(), written)?;
            used = true;
        }
        if used && self.queue.needs_interrupt(memory)? {
            self.interrupt.trigger();
        }
        Ok(more)
    }
}
