//! Where a device is on bus 0.

use std::fmt;
use std::str::FromStr;

/// A device number of bus 0: 0 to 31. It is written as lspci writes it, `0000:00:05.0`, and read without the segment as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber(u8);

/// That is not an address of a device on bus 0.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no address of a device of a VM: write it as `orlop inspect` does, such as 0000:00:05.0"
)]
pub struct NoDeviceNumber(String);

impl DeviceNumber {
    /// As many as a bus has.
    pub const COUNT: usize = 32;
    /// Where the host bridge is.
    pub const HOST_BRIDGE: DeviceNumber = DeviceNumber(0);
    /// The last of a bus.
    pub const LAST: DeviceNumber = DeviceNumber(Self::COUNT as u8 - 1);

    /// The device number in the low five bits.
    pub fn from_bits(bits: u64) -> Self {
        DeviceNumber((bits & 0x1f) as u8)
    }

    /// All, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(DeviceNumber)
    }

    /// The number that is so many above the host bridge's, or the last.
    pub fn up_to(count: usize) -> Self {
        u8::try_from(count).map_or(Self::LAST, |count| DeviceNumber(count).min(Self::LAST))
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Its bit in a register with one for each device.
    pub fn bit(self) -> u32 {
        1 << self.0
    }

    /// Its own of what there is one for each device of.
    pub fn of<T>(self, each: &[T; Self::COUNT]) -> &T {
        let [first, ..] = each;
        // It is always there: a number is below the count.
        each.get(usize::from(self.0)).unwrap_or(first)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.0)
    }
}

impl FromStr for DeviceNumber {
    type Err = NoDeviceNumber;

    fn from_str(text: &str) -> Result<Self, NoDeviceNumber> {
        let bus = text.strip_prefix("0000:").unwrap_or(text);
        let number = bus
            .strip_prefix("00:")
            .and_then(|device| device.strip_suffix(".0"))
            .filter(|digits| digits.len() == 2 && !digits.starts_with('+'))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(|number| usize::from(*number) < Self::COUNT);
        number
            .map(DeviceNumber)
            .ok_or_else(|| NoDeviceNumber(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_as_it_is_written() {
        for number in DeviceNumber::all() {
            assert_eq!(number.to_string().parse::<DeviceNumber>().unwrap(), number);
        }
        let counted = [0, 3, 31, 32, 1000].map(|count| DeviceNumber::up_to(count).get());
        assert_eq!(counted, [0, 3, 31, 31, 31]);
        assert_eq!("00:1f.0".parse::<DeviceNumber>().unwrap().get(), 31);
    }

    #[test]
    fn what_is_not_on_the_bus_is_refused() {
        for text in [
            "",
            "5",
            "00:20.0",
            "01:05.0",
            "00:05.1",
            "0000:00:+5.0",
            "0001:00:05.0",
        ] {
            assert!(text.parse::<DeviceNumber>().is_err(), "{text:?}");
        }
    }
}
