//! The disk: virtio-blk (virtio 1.2, 5.2). The host has put numbers on it: each 8 bytes of it, but for the first sector, say where they
//! are.

use crate::device::Device;
use crate::driver::Driver;
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::{Descriptor, Used};

/// The device type.
pub const KIND: u16 = 2;

/// The size of a sector.
pub const SECTOR: u32 = 512;
/// A request's header.
pub const HEADER_LEN: u32 = 16;

/// VIRTIO_BLK_T_IN
pub const READ: u32 = 0;
/// VIRTIO_BLK_S_OK
const STATUS_OK: u8 = 0;
/// What the status is before it is written.
pub const STATUS_NONE: u8 = 0xaa;

/// The sector that shows whether the disk works.
const KNOWN_SECTOR: u64 = 3;
/// What the upper half of each 8 bytes is; the lower is their number.
const MARK: u64 = 0x6f72_6c6f << 32;

/// Where a request's parts are, from the ring's buffers on.
const HEADER: u64 = 0;
const STATUS: u64 = 0x100;
const DATA: u64 = 0x1_0000;

/// The disk.
#[derive(Debug)]
pub struct Disk {
    /// How it is driven.
    pub driver: Driver,
}

impl Disk {
    /// With its ring and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        Disk {
            driver: Driver::new(device, base),
        }
    }

    /// Where requests' headers are.
    pub fn header(&self) -> u64 {
        self.driver.ring.buffers() + HEADER
    }

    /// Where requests' statuses are.
    pub fn status(&self) -> u64 {
        self.driver.ring.buffers() + STATUS
    }

    /// Where requests' data are.
    pub fn data(&self) -> u64 {
        self.driver.ring.buffers() + DATA
    }

    /// The number of sectors (5.2.4).
    pub fn capacity(&self) -> u64 {
        let config = self.driver.device.config;
        let half = |at| crate::mmio::read(config + at, crate::mmio::Width::Four);
        half(0) | half(4) << 32
    }

    /// Writes a header (5.2.6).
    pub fn write_header(&self, kind: u32, sector: u64) {
        let at = self.header();
        ram::store(at, kind);
        ram::store(at + 4, 0u32);
        ram::store(at + 8, sector);
    }

    /// Writes a good request to read one sector, as the chain with head 0.
    pub fn prepare_read(&self, sector: u64) {
        self.write_header(READ, sector);
        ram::fill(self.data(), SECTOR.into(), 0);
        ram::store(self.status(), STATUS_NONE);
        let ring = &self.driver.ring;
        ring.describe(0, Descriptor::readable(self.header(), HEADER_LEN).then(1));
        ring.describe(1, Descriptor::writable(self.data(), SECTOR).then(2));
        ring.describe(2, Descriptor::writable(self.status(), 1));
    }

    /// Reads a sector. `None` is for whoever wants to see the status of what went before.
    pub fn read(&mut self, sector: u64) -> Outcome {
        self.prepare_read(sector);
        let used = self.driver.ask(0)?;
        self.check_read(used)
    }

    /// The good request ended well.
    pub fn check_read(&self, used: Used) -> Outcome {
        is("the head given back", used.id, 0u64)?;
        is(
            "the status of a read",
            ram::load::<u8>(self.status()),
            STATUS_OK,
        )?;
        is("the number of bytes written", used.len, SECTOR + 1)
    }

    /// What a request was answered (5.2.6), while the device goes on.
    pub fn answers(&mut self, wanted: u8) -> Outcome {
        ram::store(self.status(), STATUS_NONE);
        let used = self.driver.ask(0)?;
        is("the head given back", used.id, 0u64)?;
        is(
            "the request's status",
            ram::load::<u8>(self.status()),
            wanted,
        )?;
        self.driver.device.runs()
    }

    /// Reads a sector whose content is known.
    pub fn works(&mut self) -> Outcome {
        self.read(KNOWN_SECTOR)?;
        self.check_data()
    }

    /// The data are those of the known sector.
    fn check_data(&self) -> Outcome {
        let first = KNOWN_SECTOR * u64::from(SECTOR) / 8;
        (0..u64::from(SECTOR) / 8).try_for_each(|index| {
            let got: u64 = ram::load(self.data() + 8 * index);
            is("what was read", got, MARK | (first + index))
        })
    }

    /// Makes available a request for the known sector; `finish_known` looks at it.
    pub fn prepare_known(&self) {
        self.prepare_read(KNOWN_SECTOR);
    }

    /// Waits for the known sector.
    pub fn finish_known(&mut self) -> Outcome {
        let used = self.driver.answer()?;
        self.check_read(used)?;
        self.check_data()
    }
}
