//! A started disk, on either engine, and a driver that asks it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::super::config::QUEUE_SIZE;
use super::super::engine::Engine;
pub use super::super::engine::Kind;
use super::super::image::Image;
use super::super::{Blk, Options};
use crate::devices::virtio::Device as _;
use crate::devices::virtio::test_driver::{Buffer, TestQueue, TestTransport, ram};

pub const HEADER: u64 = 0x8000;
pub const STATUS: u64 = 0x9000;
pub const DATA: u64 = 0x10000;
const RINGS: u64 = 0x80000;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
pub const PENDING: u8 = 0xff;
pub const ALL: u64 = u64::MAX;

/// Runs a test on each engine that this machine has.
pub fn on_each(test: impl Fn(Kind)) {
    test(Kind::Calls);
    if has_ring() {
        test(Kind::Ring);
    }
}

/// Whether there is an io_uring here; says so if not.
pub fn has_ring() -> bool {
    let file = tempfile::tempfile().unwrap();
    match Engine::new(Kind::Ring, &file, 1) {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: there is no io_uring here: {error}");
            false
        }
    }
}

/// A disk that is driven by one driver on all of its queues.
pub struct Machine {
    pub blk: Blk,
    pub drivers: Vec<TestQueue>,
    pub transport: TestTransport,
}

impl Machine {
    /// A started disk of 16 sectors, each filled with its number.
    pub fn new(kind: Kind, readonly: bool, features: u64) -> (Self, tempfile::NamedTempFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for sector in 0..16 {
            file.write_all(&[sector; 512]).unwrap();
        }
        let options = Options {
            readonly,
            serial: None,
            queues: 1,
        };
        let blk = Blk::open(file.path(), options).unwrap();
        (Self::start(kind, blk, features), file)
    }

    /// A started disk on any file.
    pub fn on(kind: Kind, file: File, sectors: u64, queues: u16) -> Self {
        let image = Image {
            file,
            sectors,
            readonly: false,
            id: [0; 20],
        };
        Self::start(kind, Blk::new(image, queues), ALL)
    }

    /// A started disk whose transfers wait for the other end of a socket.
    pub fn slow(queues: u16) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = File::from(OwnedFd::from(ours));
        (Self::on(Kind::Ring, file, 16, queues), theirs)
    }

    fn start(kind: Kind, mut blk: Blk, features: u64) -> Self {
        blk.engine = Some(kind);
        let memory = ram(0x100000);
        let driver = |index| TestQueue::new(&memory, RINGS + 0x4000 * index, QUEUE_SIZE, true);
        let drivers = (0..blk.queue_sizes().len() as u64).map(driver).collect();
        let mut machine = Machine {
            blk,
            drivers,
            transport: TestTransport::new(),
        };
        let queues: Vec<_> = machine.drivers.iter().collect();
        let features = machine.blk.features() & features;
        let active = machine.transport.active(features, &queues);
        machine.blk.start(active).unwrap();
        machine
    }

    /// Makes a request available on a queue and kicks. Its header and its status are those of `slot`; says its head.
    pub fn begin(
        &mut self,
        queue: usize,
        slot: u64,
        (kind, sector): (u32, u64),
        data: &[Buffer],
    ) -> u16 {
        let driver = &mut self.drivers[queue];
        let memory = driver.memory.clone();
        let header = HEADER + 16 * slot;
        memory.write_obj(kind, GuestAddress(header)).unwrap();
        memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
        let status = STATUS + slot;
        memory.write_obj(PENDING, GuestAddress(status)).unwrap();
        let mut buffers = vec![(header, 16, false)];
        buffers.extend(data);
        buffers.push((status, 1, true));
        let head = driver.add(&buffers).unwrap();
        driver.kick();
        head
    }

    /// The status that is written in a slot.
    pub fn status(&self, slot: u64) -> u8 {
        self.bytes(STATUS + slot, 1)[0]
    }

    /// Asks a queue with the given data buffers between header and status; says the status and the used length.
    pub fn ask_on(&mut self, queue: usize, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let slot = queue as u64;
        let head = self.begin(queue, slot, (kind, sector), data);
        let (used, len) = self.drivers[queue].wait_used();
        assert_eq!(used, head);
        (self.status(slot), len)
    }

    /// Asks the first queue.
    pub fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.ask_on(0, kind, sector, data)
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.blk.counters();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = &self.drivers[0].memory;
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        let memory = &self.drivers[0].memory;
        memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}
