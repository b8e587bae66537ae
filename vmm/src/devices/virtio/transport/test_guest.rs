//! A driver that writes the registers of [`super::pci`] by hand, as it should or as it likes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pci::VirtioPci;
use super::test_wires::Wires;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::test_driver::{PATIENCE, TestQueue, ram};
use crate::devices::virtio::{Device, F_RING_EVENT_IDX, F_VERSION_1, GuestMemory};
use crate::pci::{BarIndex, Function};

pub const FEATURE_SELECT: u64 = 0x00;
pub const FEATURE: u64 = 0x04;
pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub const DRIVER_FEATURE: u64 = 0x0c;
pub const CONFIG_VECTOR: u64 = 0x10;
pub const QUEUE_COUNT: u64 = 0x12;
pub const STATUS: u64 = 0x14;
pub const CONFIG_GENERATION: u64 = 0x15;
pub const QUEUE_SELECT: u64 = 0x16;
pub const QUEUE_SIZE: u64 = 0x18;
pub const QUEUE_VECTOR: u64 = 0x1a;
pub const QUEUE_ENABLE: u64 = 0x1c;
pub const QUEUE_NOTIFY: u64 = 0x1e;
pub const QUEUE_DESCRIPTORS: u64 = 0x20;
pub const QUEUE_DRIVER: u64 = 0x28;
pub const QUEUE_DEVICE: u64 = 0x30;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const TABLE: u64 = 0x4000;
pub const PENDING: u64 = 0x5000;

pub const DRIVER: u64 = 1 | 2;
pub const FEATURES_OK: u64 = 8;
pub const DRIVER_OK: u64 = 4;
pub const NEEDS_RESET: u64 = 64;
pub const RUNNING: u64 = DRIVER | FEATURES_OK | DRIVER_OK;
pub const GOOD: u64 = F_VERSION_1 | F_RING_EVENT_IDX;

/// A guest with a virtio-rng behind PCI.
pub struct Guest {
    pub function: VirtioPci,
    pub memory: Arc<GuestMemory>,
    pub wires: Arc<Wires>,
    pub queue: TestQueue,
}

impl Guest {
    /// A function with virtio-rng, and where its queue shall be.
    pub fn new() -> Self {
        Self::with(Box::new(Rng::open().unwrap()))
    }

    /// A function with another device.
    pub fn with(device: Box<dyn Device>) -> Self {
        let memory = ram(0x10_0000);
        let wires = Wires::new();
        let function =
            VirtioPci::new(device, memory.clone(), wires.clone(), wires.clone()).unwrap();
        Guest {
            function,
            queue: TestQueue::new(&memory, 0x1000, 16, true),
            memory,
            wires,
        }
    }

    pub fn get(&mut self, at: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.read(BarIndex::FIRST, at, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    pub fn put(&mut self, at: u64, len: usize, value: u64) {
        self.function
            .write(BarIndex::FIRST, at, &value.to_le_bytes()[..len]);
    }

    pub fn status(&mut self) -> u64 {
        self.get(STATUS, 1)
    }

    pub fn take_features(&mut self, features: u64) {
        for half in 0..2 {
            self.put(DRIVER_FEATURE_SELECT, 4, half);
            self.put(DRIVER_FEATURE, 4, features >> (32 * half));
        }
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&mut self, features: u64) {
        self.put(STATUS, 1, 0);
        self.put(STATUS, 1, DRIVER);
        self.take_features(features);
        self.put(STATUS, 1, DRIVER | FEATURES_OK);
    }

    pub fn lay_out(&mut self) {
        let layout = self.queue.layout;
        self.put(QUEUE_SELECT, 2, 0);
        self.put(QUEUE_SIZE, 2, layout.size.into());
        self.put(QUEUE_VECTOR, 2, 1);
        for (at, place) in [
            (QUEUE_DESCRIPTORS, layout.descriptors.0),
            (QUEUE_DRIVER, layout.driver.0),
            (QUEUE_DEVICE, layout.device.0),
        ] {
            self.put(at, 4, place & 0xffff_ffff);
            self.put(at + 4, 4, place >> 32);
        }
        self.put(QUEUE_ENABLE, 2, 1);
    }

    pub fn start(&mut self) {
        self.negotiate(GOOD);
        self.put(CONFIG_VECTOR, 2, 0);
        self.lay_out();
        self.put(STATUS, 1, RUNNING);
    }

    /// A request is answered: the device runs.
    pub fn works(&mut self) {
        let head = self.queue.add(&[(0x8000, 16, true)]).unwrap();
        self.put(NOTIFY, 2, 0);
        // Its interrupt goes elsewhere than to the queue's own event, so the ring is looked at.
        let end = Instant::now() + PATIENCE;
        let used = loop {
            if let Some(used) = self.queue.take_used() {
                break used;
            }
            assert!(Instant::now() < end, "the device did not use the chain");
            std::thread::sleep(Duration::from_micros(100));
        };
        assert_eq!(used, (head, 16));
    }

    /// Forgets the queue's rings, as after a reset.
    pub fn new_queue(&mut self) {
        use vm_memory::{Bytes, GuestAddress};
        let zeros = [0; 0x1000];
        self.memory
            .write_slice(&zeros, GuestAddress(0x1000))
            .unwrap();
        self.queue = TestQueue::new(&self.memory, 0x1000, 16, true);
    }
}
