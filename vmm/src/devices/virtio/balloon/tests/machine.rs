//! A started balloon, its driver, and its guest's RAM.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::*;
use crate::devices::virtio::test_driver::{Buffer, PATIENCE, TestQueue, TestTransport};
use crate::devices::virtio::{F_RING_EVENT_IDX, GuestMemory};
use crate::memory::{Sharing, map};

/// Which queue, as Linux counts those that are offered here.
pub const INFLATE: usize = 0;
pub const DEFLATE: usize = 1;
pub const STATISTICS: usize = 2;
pub const REPORTS: usize = 3;

pub const PAGE: u64 = 4096;
pub const RAM: u64 = 32 << 20;
/// Where lists may lie, out of the way of the rings.
pub const LIST: u64 = 0x10_0000;
/// Where the pages lie that are given away.
pub const DATA: u64 = 0x100_0000;
/// A queue's rings are this far from the next one's.
const RINGS: u64 = 0x4000;

/// Both ways to have RAM.
pub const BOTH: [Sharing; 2] = [Sharing::Private, Sharing::Shared];

pub struct Machine {
    pub balloon: Balloon,
    pub memory: Arc<GuestMemory>,
    pub drivers: Vec<TestQueue>,
    pub transport: TestTransport,
}

impl Machine {
    /// With Linux for a driver.
    pub fn new(sharing: Sharing) -> Self {
        let mut machine = Machine::idle(sharing);
        machine.start();
        machine
    }

    /// Before a driver is there.
    pub fn idle(sharing: Sharing) -> Self {
        Machine {
            balloon: Balloon::new(0),
            memory: map("32M".parse().unwrap(), sharing).unwrap(),
            drivers: Vec::new(),
            transport: TestTransport::new(),
        }
    }

    /// Starts it with new rings, also after a stop.
    pub fn start(&mut self) {
        let queues = [INFLATE, DEFLATE, STATISTICS, REPORTS];
        self.start_with(FEATURES, &queues);
    }

    /// Starts it for a driver that takes these features and enables these queues.
    pub fn start_with(&mut self, features: u64, enabled: &[usize]) {
        self.transport = TestTransport::new();
        let event_idx = features & F_RING_EVENT_IDX != 0;
        self.drivers = (0..QUEUE_SIZES.len())
            .map(|index| {
                let base = 0x1000 + index as u64 * RINGS;
                self.clear(base, RINGS);
                TestQueue::new(&self.memory, base, 64, event_idx)
            })
            .collect();
        let drivers: Vec<_> = self.drivers.iter().collect();
        let mut active = self.transport.active(features, &drivers);
        for (index, queue) in active.queues.iter_mut().enumerate() {
            queue.take_if(|_| !enabled.contains(&index));
        }
        self.balloon.start(active).unwrap();
    }

    /// Makes a chain available in a queue.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.drivers[queue].add(buffers).unwrap();
        self.drivers[queue].kick();
        head
    }

    /// Makes a chain available, and waits until it is back with nothing written.
    pub fn ask(&mut self, queue: usize, buffers: &[Buffer]) {
        let head = self.offer(queue, buffers);
        assert_eq!(self.drivers[queue].wait_used(), (head, 0));
    }

    /// Writes a list of pages; says which buffer it is.
    pub fn list(&self, addresses: impl IntoIterator<Item = u64>) -> Buffer {
        let bytes: Vec<u8> = addresses
            .into_iter()
            .flat_map(|address| ((address / PAGE) as u32).to_le_bytes())
            .collect();
        self.write(LIST, &bytes);
        (LIST, bytes.len() as u32, false)
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn clear(&self, at: u64, len: u64) {
        self.write(at, &vec![0; len as usize]);
    }

    /// Fills pages with something.
    pub fn fill(&self, at: u64, pages: u64) {
        self.write(at, &vec![0x5a; (pages * PAGE) as usize]);
    }

    /// Which of the pages from `at` on are still as they were filled; the others are all zero.
    pub fn filled(&self, at: u64, pages: u64) -> Vec<bool> {
        (0..pages)
            .map(|page| {
                let mut bytes = vec![0; PAGE as usize];
                let from = GuestAddress(at + page * PAGE);
                self.memory.read_slice(&mut bytes, from).unwrap();
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "half a page");
                bytes[0] == 0x5a
            })
            .collect()
    }

    pub fn counter(&self, name: &str) -> Option<u64> {
        let counters = self.balloon.counters();
        let found = counters.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value)
    }

    /// Waits until a counter has a value.
    pub fn until(&self, name: &str, value: u64) {
        let end = Instant::now() + PATIENCE;
        while self.counter(name) != Some(value) {
            assert!(Instant::now() < end, "{name} is {:?}", self.counter(name));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A page goes into the balloon, and one is reported.
    pub fn works(&mut self) {
        self.fill(DATA, 4);
        let list = self.list([DATA + PAGE]);
        self.ask(INFLATE, &[list]);
        self.ask(REPORTS, &[(DATA + 2 * PAGE, PAGE as u32, true)]);
        assert_eq!(self.filled(DATA, 4), [true, false, false, true]);
        assert!(!self.transport.faulted());
    }
}
