//! A driver for tests: it lays out rings in guest memory, rightly or wrongly, as a guest would, and drives a started device through
//! its two events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::STATUS_NEEDS_RESET;
use super::queue::{Layout, Queue};
use super::{Active, ActiveQueue, Fault, GuestMemory, Interrupt};

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT as u16;

/// How long a device may take over anything in a test, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// RAM of `size` bytes that begins at 0.
pub fn ram(size: usize) -> Arc<GuestMemory> {
    Arc::new(crate::memory::anonymous(&[(GuestAddress(0), size)]).unwrap())
}

/// A buffer of a chain: where, how long, and whether the device may write it.
pub type Buffer = (u64, u32, bool);

/// The driver's side of one queue.
pub struct TestQueue {
    pub memory: Arc<GuestMemory>,
    pub layout: Layout,
    pub event_idx: bool,
    pub kick: EventFd,
    pub interrupt: Arc<EventFd>,
    avail: u16,
    used: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl TestQueue {
    /// The rings take up less than `0x1000 + 32 * size` bytes from `base` on.
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16, event_idx: bool) -> Self {
        let driver = base + 16 * u64::from(size);
        let device = (driver + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        TestQueue {
            memory: memory.clone(),
            layout: Layout {
                size,
                descriptors: GuestAddress(base),
                driver: GuestAddress(driver),
                device: GuestAddress(device),
            },
            event_idx,
            kick: event(),
            interrupt: Arc::new(event()),
            avail: 0,
            used: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    /// The device's side.
    pub fn queue(&self) -> Queue {
        Queue::new(32768, self.layout, self.event_idx, &self.memory).unwrap()
    }

    /// The device's side, with its events.
    pub fn active(&self) -> ActiveQueue {
        ActiveQueue {
            queue: self.queue(),
            kick: self.kick.try_clone().unwrap(),
            interrupt: Interrupt::new(self.interrupt.clone()),
        }
    }

    /// Writes an entry of the descriptor table.
    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.layout.descriptors.0 + 16 * u64::from(index);
        write_descriptor(&self.memory, at, addr, len, flags, next);
    }

    /// Makes `head` available, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let slot = self.layout.driver.0 + 4 + 2 * u64::from(self.avail % self.layout.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail(self.avail.wrapping_add(1));
    }

    /// Sets the driver's index, whatever it is.
    pub fn set_avail(&mut self, index: u16) {
        self.avail = index;
        let at = GuestAddress(self.layout.driver.0 + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    /// Makes a chain of direct descriptors available, and says its head. `None` when too few descriptors are free.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - buffers.len());
        for (i, (addr, len, writable)) in buffers.iter().enumerate() {
            let next = indices.get(i + 1).copied();
            let flags = if *writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.descriptor(indices[i], *addr, *len, flags, next.unwrap_or(0));
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.offer(head);
        Some(head)
    }

    /// Announces what was made available, unless the device does not want to hear of it.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The index that the device has reached.
    pub fn used_index(&self) -> u16 {
        let at = GuestAddress(self.layout.device.0 + 2);
        self.memory.load(at, Ordering::Acquire).unwrap()
    }

    /// Takes back the next chain that the device has used: its head, and how much was written to it.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.used {
            return None;
        }
        let slot = self.layout.device.0 + 4 + 8 * u64::from(self.used % self.layout.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        if self.event_idx {
            // The next one is to be announced.
            let at = self.layout.driver.0 + 4 + 2 * u64::from(self.layout.size);
            self.memory
                .store(self.used, GuestAddress(at), Ordering::SeqCst)
                .unwrap();
        }
        let head = u16::try_from(head).unwrap();
        self.free
            .extend(self.chains.remove(&head).unwrap_or_default());
        Some((head, len))
    }

    /// Waits for a used chain. Panics when none comes, or when it comes without an interrupt.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.take_used() {
                return used;
            }
            assert!(Instant::now() < end, "the device did not use the chain");
            wait(&self.interrupt, Duration::from_secs(1));
        }
    }
}

/// Writes a descriptor into any table.
pub fn write_descriptor(memory: &GuestMemory, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    memory.write_obj(addr, GuestAddress(at)).unwrap();
    memory.write_obj(len, GuestAddress(at + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    memory.write_obj(next, GuestAddress(at + 14)).unwrap();
}

/// Waits for an event and takes it; `false` when it did not come in time.
pub fn wait(event: &EventFd, time: Duration) -> bool {
    let end = Instant::now() + time;
    while event.read().is_err() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    true
}

/// The transport's side of a device: its status and its configuration interrupt.
pub struct TestTransport {
    pub status: Arc<AtomicU8>,
    pub config: Arc<EventFd>,
}

impl TestTransport {
    pub fn new() -> Self {
        TestTransport {
            status: Arc::new(AtomicU8::new(15)),
            config: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        }
    }

    /// What a device is started with.
    pub fn active(&self, features: u64, queues: &[&TestQueue]) -> Active {
        Active {
            memory: queues[0].memory.clone(),
            features,
            queues: queues.iter().map(|queue| Some(queue.active())).collect(),
            fault: Fault::new(
                "test",
                self.status.clone(),
                Interrupt::new(self.config.clone()),
            ),
            config_changed: Interrupt::new(self.config.clone()),
        }
    }

    /// Whether the device asks for a reset.
    pub fn faulted(&self) -> bool {
        self.status.load(Ordering::SeqCst) & STATUS_NEEDS_RESET != 0
    }

    /// Waits until the device asks for a reset.
    pub fn expect_fault(&self) {
        assert!(wait(&self.config, PATIENCE), "the device raised no fault");
        assert!(self.faulted());
    }
}

/// Numbers that are the same in every run (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// Fails unless the result is an error like the pattern.
macro_rules! assert_err {
    ($result:expr, $pattern:pat) => {
        match $result {
            Err($pattern) => {}
            other => panic!("not {}: {other:?}", stringify!($pattern)),
        }
    };
}
pub(crate) use assert_err;
