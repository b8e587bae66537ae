//! PCI: the functions on bus 0, their BAR and their capabilities, by memory accesses to configuration space (ECAM).

use crate::mmio::{self, Width};

/// Where configuration space is, as the VM's MCFG table says.
const ECAM: u64 = 0xe000_0000;
/// As many devices as a bus has.
pub const DEVICES: u64 = 32;

const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
/// Command bit 1: the BAR answers.
const COMMAND_MEMORY: u64 = 1 << 1;
/// The id of the MSI-X capability; in its control word, bit 15 turns it on.
pub const CAP_MSIX: u8 = 0x11;
const MSIX_ENABLE: u64 = 1 << 15;
/// As many capabilities as there is room for.
const CAPABILITIES_MAX: usize = 48;

/// A function.
#[derive(Clone, Copy, Debug)]
pub struct Function(u64);

impl Function {
    /// The first function with this vendor and device.
    pub fn find(vendor: u16, device: u16) -> Option<Self> {
        let id = u64::from(device) << 16 | u64::from(vendor);
        (0..DEVICES)
            .map(Function::at)
            .find(|function| function.get(0, Width::Four) == id)
    }

    /// The function at this device number, if there is one.
    pub fn at(number: u64) -> Self {
        Function(ECAM + (number << 15))
    }

    /// Whether there is one.
    pub fn is_there(self) -> bool {
        self.get(0, Width::Four) != 0xffff_ffff
    }

    /// Reads configuration space.
    pub fn get(self, at: u64, width: Width) -> u64 {
        mmio::read(self.0 + at, width)
    }

    /// Writes configuration space.
    pub fn put(self, at: u64, width: Width, value: u64) {
        mmio::write(self.0 + at, width, value);
    }

    /// Where its BAR is.
    pub fn bar(self) -> u64 {
        self.get(BAR0, Width::Four) & !0xf
    }

    /// Moves its BAR.
    pub fn move_bar(self, to: u64) {
        self.put(BAR0, Width::Four, to);
    }

    /// Lets its BAR answer, or not.
    pub fn decode(self, on: bool) {
        let command = self.get(COMMAND, Width::Two) & !COMMAND_MEMORY;
        let bit = if on { COMMAND_MEMORY } else { 0 };
        self.put(COMMAND, Width::Two, command | bit);
    }

    /// Turns MSI-X on.
    pub fn enable_msix(self) {
        self.set_msix(MSIX_ENABLE);
    }

    /// Turns MSI-X off.
    pub fn silence(self) {
        self.set_msix(0);
    }

    fn set_msix(self, control: u64) {
        self.capabilities(CAP_MSIX)
            .for_each(|at| self.put(at + 2, Width::Two, control));
    }

    /// Where in configuration space its capabilities with this id are.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u64> {
        let next = move |pointer: u64| {
            let at = self.get(pointer, Width::One) & !3;
            (at != 0).then_some(at)
        };
        core::iter::successors(next(CAPABILITIES), move |at| next(at + 1))
            .take(CAPABILITIES_MAX)
            .filter(move |at| self.get(*at, Width::One) == u64::from(id))
    }
}
