//! Where a function is on bus 0.

use std::fmt;

use super::DeviceNumber;

/// A function of a device: most devices have function 0 alone. It is written as lspci writes it, `0000:00:05.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionNumber {
    device: DeviceNumber,
    function: u8,
}

impl FunctionNumber {
    /// As many as a device has.
    pub const COUNT: usize = 8;

    /// The function of `device` with the number in the low three bits.
    pub fn from_bits(device: DeviceNumber, bits: u64) -> Self {
        FunctionNumber {
            device,
            function: (bits & 7) as u8,
        }
    }

    /// All of a device, in order.
    pub fn all_of(device: DeviceNumber) -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u64).map(move |number| FunctionNumber::from_bits(device, number))
    }

    /// Whose it is.
    pub fn device(self) -> DeviceNumber {
        self.device
    }

    /// Its number in the device.
    pub fn get(self) -> u8 {
        self.function
    }

    /// Its own of what there is one for each function of.
    pub fn of<T>(self, each: &[[T; Self::COUNT]; DeviceNumber::COUNT]) -> &T {
        let functions = self.device.of(each);
        let [first, ..] = functions;
        // It is always there: a number is below the count.
        functions.get(usize::from(self.function)).unwrap_or(first)
    }
}

impl From<DeviceNumber> for FunctionNumber {
    /// The first.
    fn from(device: DeviceNumber) -> Self {
        FunctionNumber {
            device,
            function: 0,
        }
    }
}

impl fmt::Display for FunctionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.{}", self.device.get(), self.function)
    }
}
