//! The balloon: virtio-balloon (virtio 1.2, 5.5). What is given to it reads as zeros afterwards.

use crate::device::Device;
use crate::driver::Driver;
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::{Descriptor, Ring};

/// The device type.
pub const KIND: u16 = 5;

/// The size of a page.
pub const PAGE: u64 = 4096;
/// As many pages as are there to be given away.
pub const PAGES: u64 = 16;
/// What they hold.
const FILLED: u8 = 0x5a;

/// VIRTIO_BALLOON_F_STATS_VQ
const STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_PAGE_REPORTING
const PAGE_REPORTING: u64 = 1 << 5;
/// The queue for reports (5.5.2).
const REPORTS: u64 = 4;

/// Each queue's memory.
const SHARE: u64 = 4 << 20;
/// Where the pages are, from the ring's buffers on: behind lists of any length that is tried.
const DATA: u64 = 0x20_0000;

/// The device. It has one driver at a time: to bring one up ends the other.
#[derive(Debug)]
pub struct Balloon {
    /// Gives pages to the balloon.
    pub inflate: Driver,
    /// Says what is free.
    pub reports: Driver,
}

/// The pages that a driver has to give away.
pub fn data(ring: &Ring) -> u64 {
    ring.buffers() + DATA
}

/// Fills them.
pub fn fill(ring: &Ring) {
    ram::fill(data(ring), PAGES * PAGE, FILLED);
}

/// Complains unless `count` of them from number `first` on are as they were filled.
pub fn stayed(ring: &Ring, first: u64, count: u64) -> Outcome {
    let filled = ram::holds(data(ring) + first * PAGE, count * PAGE, FILLED);
    is("whether memory stayed as it was", filled, true)
}

/// Complains unless page `number` is gone.
fn is_gone(ring: &Ring, number: u64) -> Outcome {
    let zero = ram::holds(data(ring) + number * PAGE, PAGE, 0);
    is("whether a page is gone", zero, true)
}

/// Writes a list of one page as the `index`th of the ring's buffers.
pub fn write_page(ring: &Ring, index: u64, address: u64) {
    ram::store(ring.buffers() + 4 * index, (address / PAGE) as u32);
}

impl Balloon {
    /// With its rings and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        let features = STATS_VQ | PAGE_REPORTING;
        Balloon {
            inflate: Driver::new(device, base),
            reports: Driver::of_queue(device, base + SHARE, REPORTS, features),
        }
    }

    /// Resets it, and gives it a page by each queue.
    pub fn works(&mut self) -> Outcome {
        self.inflate.bring_up()?;
        let ring = &self.inflate.ring;
        fill(ring);
        write_page(ring, 0, data(ring) + PAGE);
        ring.describe(0, Descriptor::readable(ring.buffers(), 4));
        self.inflate.ask(0)?;
        let ring = &self.inflate.ring;
        is_gone(ring, 1)?;
        stayed(ring, 2, PAGES - 2)?;

        self.reports.bring_up()?;
        let ring = &self.reports.ring;
        fill(ring);
        ring.describe(0, Descriptor::writable(data(ring) + PAGE, PAGE as u32));
        self.reports.ask(0)?;
        let ring = &self.reports.ring;
        is_gone(ring, 1)?;
        stayed(ring, 2, PAGES - 2)
    }
}
