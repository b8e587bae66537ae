//! A driver that does as it should (virtio 1.2, 3.1.1), step by step, so that an attack can put something between two steps.

use crate::device::{
    DRIVER_FEATURE, DRIVER_FEATURE_SELECT, Device, FEATURE, FEATURE_SELECT, NO_VECTOR,
    QUEUE_DESCRIPTORS, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_ENABLE, QUEUE_NOTIFY_OFFSET, QUEUE_SELECT,
    QUEUE_SIZE, QUEUE_VECTOR, STATUS, status,
};
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, becomes, is, there};
use crate::ring::{Ring, SIZE, Used};

/// VIRTIO_F_INDIRECT_DESC
const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_VERSION_1
pub const VERSION_1: u64 = 1 << 32;
/// What is asked of every device.
const FEATURES: u64 = VERSION_1 | INDIRECT_DESC;

/// A device and the ring that is one of its queues, the first if nothing else is said.
#[derive(Debug)]
pub struct Driver {
    /// The device.
    pub device: Device,
    /// The ring.
    pub ring: Ring,
    /// Where it is kicked.
    pub kick_at: u64,
    /// Which queue it is.
    queue: u64,
    /// What is asked of the device.
    features: u64,
}

impl Driver {
    /// For the device, with a ring in the memory from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        Driver {
            device,
            ring: Ring::new(base),
            kick_at: device.kick_register(0),
            queue: 0,
            features: FEATURES,
        }
    }

    /// The same for another queue, which is there if the device has these features besides.
    pub fn of_queue(device: Device, base: u64, queue: u64, features: u64) -> Self {
        Driver {
            queue,
            features: FEATURES | features,
            ..Self::new(device, base)
        }
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.device.put(FEATURE_SELECT, 0);
        let low = self.device.get(FEATURE);
        self.device.put(FEATURE_SELECT, 1);
        low | self.device.get(FEATURE) << 32
    }

    /// Takes these features.
    pub fn take(&self, features: u64) {
        self.device.put(DRIVER_FEATURE_SELECT, 0);
        self.device.put(DRIVER_FEATURE, features & 0xffff_ffff);
        self.device.put(DRIVER_FEATURE_SELECT, 1);
        self.device.put(DRIVER_FEATURE, features >> 32);
    }

    /// Resets the device and says hello.
    pub fn greet(&self) -> Outcome {
        self.device.reset()?;
        self.device.put(STATUS, status::ACKNOWLEDGE);
        self.device
            .put(STATUS, status::ACKNOWLEDGE | status::DRIVER);
        Ok(())
    }

    /// Resets the device and agrees on features.
    pub fn negotiate(&self) -> Outcome {
        const AGREED: u64 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.greet()?;
        is(
            "what is offered of what is needed",
            self.offered() & self.features,
            self.features,
        )?;
        self.take(self.features);
        self.device.put(STATUS, AGREED);
        is("the status", self.device.get(STATUS), AGREED)
    }

    /// Says where the queue is, and does not enable it.
    pub fn lay_out(&mut self) {
        self.ring.clear();
        let device = &self.device;
        device.put(QUEUE_SELECT, self.queue);
        self.kick_at = device.kick_register(device.get(QUEUE_NOTIFY_OFFSET));
        device.put(QUEUE_SIZE, SIZE.into());
        device.put(QUEUE_VECTOR, NO_VECTOR);
        device.put_address(QUEUE_DESCRIPTORS, self.ring.descriptors());
        device.put_address(QUEUE_DRIVER, self.ring.driver());
        device.put_address(QUEUE_DEVICE, self.ring.device());
    }

    /// Enables the selected queue.
    pub fn enable(&self) {
        self.device.put(QUEUE_ENABLE, 1);
    }

    /// Says that the driver is ready.
    pub fn go(&self) {
        self.device.put(STATUS, status::RUNNING);
    }

    /// From whatever state to a device that works.
    pub fn bring_up(&mut self) -> Outcome {
        self.negotiate()?;
        self.lay_out();
        self.enable();
        self.go();
        self.device.runs()
    }

    /// Says that something is available.
    pub fn kick(&self) {
        mmio::write(self.kick_at, Width::Two, self.queue);
    }

    /// Makes a head available, and waits until the device gives something back.
    pub fn ask(&mut self, head: u16) -> Outcome<Used> {
        self.ring.offer(head);
        self.kick();
        self.answer()
    }

    /// Waits until the device has given something back, or much: takes the first of it.
    pub fn next_answer(&mut self) -> Outcome<Used> {
        becomes("whether the device gave something back", 1, || {
            // Leaves the guest, so that the host has the processor.
            self.device.get(STATUS);
            self.ring.has_news().into()
        })?;
        there("what the device gave back", self.ring.take())
    }

    /// Waits until the device gives something back, and nothing else.
    pub fn answer(&mut self) -> Outcome<Used> {
        let wanted = self.ring.awaited();
        let look = || {
            // Leaves the guest, so that the host has the processor.
            self.device.get(STATUS);
            self.ring.used_index().into()
        };
        becomes("the device's index", wanted.into(), look)?;
        there("what the device gave back", self.ring.take())
    }
}
