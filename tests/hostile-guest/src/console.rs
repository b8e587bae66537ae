//! The console: virtio-console (virtio 1.2, 5.3). What it is told stands in the file that the serial port's words are in, too: so it is told
//! empty lines.

use crate::device::Device;
use crate::driver::Driver;
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::Descriptor;

/// The device type.
pub const KIND: u16 = 3;

/// transmitq (5.3.2).
const TRANSMIT: u64 = 1;
/// VIRTIO_CONSOLE_F_SIZE
const SIZE: u64 = 1 << 0;

/// The other queue's memory.
const SHARE: u64 = 4 << 20;
/// What is said.
const LEN: u32 = 8;

/// The device, which is given both of its queues at once.
#[derive(Debug)]
pub struct Console {
    /// Hears what is typed, which nothing is.
    pub receive: Driver,
    /// Says something.
    pub transmit: Driver,
}

impl Console {
    /// With its rings and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        Console {
            receive: Driver::of_queue(device, base, 0, SIZE),
            transmit: Driver::of_queue(device, base + SHARE, TRANSMIT, SIZE),
        }
    }

    /// From whatever state to a device that works.
    pub fn bring_up(&mut self) -> Outcome {
        self.receive.negotiate()?;
        self.receive.lay_out();
        self.receive.enable();
        self.transmit.lay_out();
        self.transmit.enable();
        self.transmit.go();
        self.transmit.device.runs()
    }

    /// As many bytes of empty lines as the buffers hold.
    pub fn empty_lines(&self, len: u64) -> u64 {
        let buffer = self.transmit.ring.buffers();
        ram::fill(buffer, len, b'\n');
        buffer
    }

    /// Resets it, and says something.
    pub fn works(&mut self) -> Outcome {
        self.bring_up()?;
        let line = self.empty_lines(LEN.into());
        self.transmit
            .ring
            .describe(0, Descriptor::readable(line, LEN));
        let used = self.transmit.ask(0)?;
        is("the head given back", used.id, 0u64)?;
        is("the number of bytes written", used.len, 0u64)
    }

    /// The terminal's size: its columns and rows (5.3.4).
    pub fn size(&self) -> u64 {
        mmio::read(self.transmit.device.config, Width::Four)
    }
}
