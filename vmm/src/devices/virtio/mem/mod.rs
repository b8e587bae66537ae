//! virtio-mem (virtio 1.2, 5.15): memory that a VM is given and gives up while it runs.
//!
//! The host says how much the guest is to have of a region ([`Target`]); the driver plugs and unplugs blocks of it until it has as much, or
//! as near to that as it comes: to unplug one, the guest must move what is in it. What is not plugged cannot be touched
//! ([`memory::pluggable`](crate::memory::pluggable)).
//!
//! What the guest has lasts as long as its machine, and not only as long as a driver works with the device.

mod requests;
mod target;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

pub use self::target::{NotSo, Reached, Target};
use super::worker::Worker;
use super::{Active, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, Kind, StartError};
use crate::memory::Region;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver does not touch what is not plugged. Linux has taken it since 5.17.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// The driver sends one request at a time.
const QUEUE_SIZE: u16 = 64;

/// The device.
#[derive(Debug)]
pub struct Mem {
    target: Target,
    worker: Option<Worker<()>>,
}

impl Mem {
    /// A device for `region`, of which the guest is to have `size` bytes; idle. `None` for a region that is RAM.
    pub fn new(region: Arc<Region>, size: u64) -> Option<Self> {
        Some(Mem {
            target: Target::new(region, size)?,
            worker: None,
        })
    }

    /// Says how much the guest is to have, wherever the device is.
    pub fn target(&self) -> Target {
        self.target.clone()
    }
}

impl Device for Mem {
    fn kind(&self) -> Kind {
        Kind::Memory
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
    }

    fn required_features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.target.space())
    }

    fn config_generation(&self) -> u8 {
        self.target.generation()
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        let queue = active.take_queue(0)?;
        self.target.connect(active.config_changed.clone());
        let target = self.target.clone();
        self.worker = Some(Worker::spawn("virtio-mem", move |events| {
            let memory = &active.memory;
            queue.work(memory, events, &active.fault, |chain| {
                requests::serve(memory, chain, &target)
            });
        })?);
        Ok(())
    }

    fn stop(&mut self) {
        self.worker = None;
        self.target.disconnect();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("region_bytes", self.target.most()),
            ("requested_bytes", self.target.requested()),
            ("plugged_bytes", self.target.plugged()),
        ]
    }
}
