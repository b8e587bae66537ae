//! The memory that a function decodes (PCI Express 6.0, 7.5.1.2.1): its base address registers, and its ROM's.

/// Which of a function's BARs: 0 to 5, or its expansion ROM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BarIndex(u8);

impl BarIndex {
    /// The first, and of most functions the only one.
    pub const FIRST: BarIndex = BarIndex(0);
    /// That of the expansion ROM (7.5.1.2.4).
    pub const ROM: BarIndex = BarIndex(6);
    /// As many as there are, the ROM's included.
    pub const COUNT: usize = 7;

    /// The BARs of a function, without the ROM's.
    pub fn all() -> impl Iterator<Item = BarIndex> {
        (0..Self::ROM.0).map(BarIndex)
    }

    /// The one that this number stands for in a capability; `None` for numbers behind the last.
    pub fn new(number: u32) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (number < Self::ROM.0).then_some(BarIndex(number))
    }

    /// Its number.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }

    /// Where its register is in configuration space.
    pub fn register(self) -> usize {
        const BAR0: usize = 0x10;
        const ROM: usize = 0x30;
        if self == Self::ROM {
            ROM
        } else {
            BAR0 + 4 * self.get()
        }
    }
}

/// How wide a BAR's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// It is below 4 GiB.
    ThirtyTwo,
    /// It can be anywhere, and takes the next register as well.
    SixtyFour,
}

/// A BAR for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which it is.
    pub index: BarIndex,
    /// Its size in bytes: a power of two.
    pub size: u64,
    /// How wide it is.
    pub bits: Bits,
}
