//! The source of randomness: virtio-rng (virtio 1.2, 5.4).

use crate::device::Device;
use crate::driver::Driver;
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::Descriptor;

/// The device type.
pub const KIND: u16 = 4;

/// As many bytes as are asked for: so many that they are never all zero.
const LEN: u32 = 32;

/// The device.
#[derive(Debug)]
pub struct Entropy {
    /// How it is driven.
    pub driver: Driver,
}

impl Entropy {
    /// With its ring and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        Entropy {
            driver: Driver::new(device, base),
        }
    }

    /// Asks for a few bytes.
    pub fn works(&mut self) -> Outcome {
        let buffer = self.driver.ring.buffers();
        ram::fill(buffer, LEN.into(), 0);
        let request = Descriptor::writable(buffer, LEN);
        self.driver.ring.describe(0, request);
        let used = self.driver.ask(0)?;
        is("the head given back", used.id, 0u64)?;
        is("the number of random bytes", used.len, LEN)?;
        let nothing = ram::holds(buffer, LEN.into(), 0);
        is("whether random bytes are all zero", nothing, false)
    }
}
