//! Memory that comes and goes: virtio-mem (virtio 1.2, 5.15). It lies above 4 GiB, where this guest looks at nothing; devices reach it.

use crate::device::Device;
use crate::driver::Driver;
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, becomes, is};
use crate::ram;
use crate::ring::{Descriptor, Ring};

/// The device type.
pub const KIND: u16 = 24;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Requests (5.15.6).
pub const PLUG: u16 = 0;
pub const UNPLUG: u16 = 1;
pub const UNPLUG_ALL: u16 = 2;
pub const STATE: u16 = 3;

/// How they are answered (5.15.6).
pub const ACK: u16 = 0;
pub const NACK: u16 = 1;
pub const ERROR: u16 = 3;

/// A request's length, and an answer's.
pub const REQUEST_LEN: u32 = 24;
pub const ANSWER_LEN: u32 = 10;
/// Where the answer is, from the ring's buffers on.
const ANSWER: u64 = 0x1000;
/// What is there before it comes.
const NO_ANSWER: u16 = 0x5a5a;

/// The configuration's fields (5.15.4).
const BLOCK_SIZE: u64 = 0;
const ADDR: u64 = 16;
const REGION_SIZE: u64 = 24;
const PLUGGED_SIZE: u64 = 40;
const REQUESTED_SIZE: u64 = 48;
/// Where they end.
pub const CONFIG_LEN: u64 = 56;

/// The device.
#[derive(Debug)]
pub struct Plugged {
    /// How it is driven.
    pub driver: Driver,
}

/// Where the answer is.
pub fn answer_at(ring: &Ring) -> u64 {
    ring.buffers() + ANSWER
}

impl Plugged {
    /// With its ring and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        Plugged {
            driver: Driver::of_queue(device, base, 0, UNPLUGGED_INACCESSIBLE),
        }
    }

    fn field(&self, at: u64) -> u64 {
        let config = self.driver.device.config + at;
        mmio::read(config, Width::Four) | mmio::read(config + 4, Width::Four) << 32
    }

    /// A block's size.
    pub fn block(&self) -> u64 {
        self.field(BLOCK_SIZE)
    }

    /// Where the region begins.
    pub fn start(&self) -> u64 {
        self.field(ADDR)
    }

    /// Its length.
    pub fn len(&self) -> u64 {
        self.field(REGION_SIZE)
    }

    /// How much of it the guest has.
    pub fn plugged(&self) -> u64 {
        self.field(PLUGGED_SIZE)
    }

    /// How much of it the host wants the guest to have.
    pub fn requested(&self) -> u64 {
        self.field(REQUESTED_SIZE)
    }

    /// Writes a request at the beginning of the ring's buffers, and its chain with this head.
    pub fn prepare(&self, head: u16, kind: u16, address: u64, count: u16) {
        let ring = &self.driver.ring;
        let at = ring.buffers() + u64::from(head) * u64::from(REQUEST_LEN);
        ram::fill(at, REQUEST_LEN.into(), 0);
        ram::store(at, kind);
        ram::store(at + 8, address);
        ram::store(at + 16, count);
        ram::store(answer_at(ring), NO_ANSWER);
        let answer = Descriptor::writable(answer_at(ring), ANSWER_LEN);
        ring.describe(head, Descriptor::readable(at, REQUEST_LEN).then(head + 1));
        ring.describe(head + 1, answer);
    }

    /// Asks for something, and wants this answer.
    pub fn answers(&mut self, kind: u16, address: u64, count: u16, wanted: u16) -> Outcome {
        self.prepare(0, kind, address, count);
        let used = self.driver.ask(0)?;
        is("the head given back", used.id, 0u64)?;
        is("the answer's length", used.len, ANSWER_LEN)?;
        let answer: u16 = ram::load(answer_at(&self.driver.ring));
        is("the answer", answer, wanted)
    }

    /// Brings it up, and takes nothing: nothing is left of what was plugged.
    pub fn bring_up(&mut self) -> Outcome {
        self.driver.bring_up()?;
        // The host says so when the guest runs.
        becomes("whether memory is to be had", 1, || {
            (self.requested() > self.block()).into()
        })?;
        self.answers(UNPLUG_ALL, 0, 0, ACK)?;
        self.has(0)
    }

    /// Complains unless the guest has so many bytes.
    pub fn has(&self, bytes: u64) -> Outcome {
        is("the size of what is plugged", self.plugged(), bytes)
    }

    /// Takes a block and gives it back.
    pub fn works(&mut self) -> Outcome {
        self.bring_up()?;
        let (start, block) = (self.start(), self.block());
        self.answers(PLUG, start, 1, ACK)?;
        self.has(block)?;
        self.answers(STATE, start, 1, ACK)?;
        self.answers(UNPLUG, start, 1, ACK)?;
        self.has(0)
    }
}
