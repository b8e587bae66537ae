//! A started card whose tap is a pair of packet sockets for each pair of queues, and a driver of all its queues.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::time::Instant;

use socket2::{Domain, Socket, Type};
use vm_memory::{Bytes, GuestAddress};

use super::super::*;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::test_driver::{Buffer, PATIENCE, TestQueue, TestTransport, ram};

pub use std::sync::atomic::Ordering;

/// Where buffers may lie, out of the way of the rings.
pub const DATA: u64 = 0x10_0000;
const RAM: usize = 0x80_0000;
/// A queue's rings are this far from the next one's.
const RINGS: u64 = 0x4000;
pub const FACTS: Facts = Facts {
    mac: [2, 0, 0, 0, 0, 1],
    mtu: Some(1500),
    pairs: 1,
    uso: true,
};

/// What stands for a tap.
#[derive(Debug)]
pub struct Sockets {
    queues: Vec<File>,
    pub offloads: AtomicU32,
    pub used: AtomicUsize,
}

impl Port for Sockets {
    fn name(&self) -> &str {
        "socket"
    }

    fn queues(&self) -> &[File] {
        &self.queues
    }

    fn set_offloads(&self, flags: u32) -> io::Result<()> {
        self.offloads.store(flags, Ordering::SeqCst);
        Ok(())
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn use_queues(&self, count: usize) -> io::Result<()> {
        self.used.store(count, Ordering::SeqCst);
        Ok(())
    }
}

/// The card, its driver, and the far ends of its wires.
pub struct Card {
    pub net: Net,
    pub memory: Arc<GuestMemory>,
    pub drivers: Vec<TestQueue>,
    pub transport: TestTransport,
    pub wires: Vec<UnixDatagram>,
    pub port: Arc<Sockets>,
    features: u64,
    size: u16,
}

/// Which queue.
pub const RX: usize = 0;
pub const TX: usize = 1;

impl Card {
    /// A card of one pair, whose driver takes all features but `without`.
    pub fn without(without: u64) -> Self {
        Self::new(1, 64, !without)
    }

    pub fn new(pairs: u16, size: u16, features: u64) -> Self {
        let (mut queues, mut wires) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (ours, theirs) = wire();
            theirs.set_read_timeout(Some(PATIENCE)).unwrap();
            queues.push(File::from(ours));
            wires.push(theirs);
        }
        let port = Arc::new(Sockets {
            queues,
            offloads: AtomicU32::new(0),
            used: AtomicUsize::new(0),
        });
        let facts = Facts { pairs, ..FACTS };
        let mut card = Card {
            net: Net::new(port.clone(), facts, Vhost::Off),
            memory: ram(RAM),
            drivers: Vec::new(),
            transport: TestTransport::new(),
            wires,
            port,
            features: features & facts.features(),
            size,
        };
        card.start();
        card
    }

    /// Starts it with new rings, also after a stop.
    pub fn start(&mut self) {
        let count = self.net.queue_sizes().len() as u64;
        self.memory = ram(RAM);
        self.transport = TestTransport::new();
        let event_idx = self.features & crate::devices::virtio::F_RING_EVENT_IDX != 0;
        self.drivers = (0..count)
            .map(|index| TestQueue::new(&self.memory, 0x1000 + index * RINGS, self.size, event_idx))
            .collect();
        let drivers: Vec<_> = self.drivers.iter().collect();
        let active = self.transport.active(self.features, &drivers);
        self.net.start(active).unwrap();
    }

    /// Makes a chain available in a queue.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.drivers[queue].add(buffers).unwrap();
        self.drivers[queue].kick();
        head
    }

    /// Makes a receive buffer available.
    pub fn room(&mut self, at: u64, len: u32) -> u16 {
        self.offer(RX, &[(at, len, true)])
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.net.counters();
        counters.iter().find(|(known, _)| *known == name).unwrap().1
    }

    /// Waits until a counter has a value.
    pub fn until(&self, name: &str, value: u64) {
        let end = Instant::now() + PATIENCE;
        while self.counter(name) != value {
            assert!(Instant::now() < end, "{name} is {}", self.counter(name));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// What comes out of the wire.
    pub fn sent(&self) -> Vec<u8> {
        let mut packet = vec![0; config::PACKET_MAX + 1];
        let len = self.wires[0].recv(&mut packet).unwrap();
        packet.truncate(len);
        packet
    }
}

/// A socket for the card and one for the far end. Each keeps the bounds of packets, and sees when the other is closed.
fn wire() -> (OwnedFd, UnixDatagram) {
    let kind = Type::from(libc::SOCK_SEQPACKET);
    let (ours, theirs) = Socket::pair(Domain::UNIX, kind, None).unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours.into(), OwnedFd::from(theirs).into())
}

/// A packet of `len` bytes behind its header, which are its number and then count up.
pub fn packet(number: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0; config::HEADER];
    packet.extend((0..len).map(|at| if at == 0 { number } else { at as u8 }));
    packet
}
