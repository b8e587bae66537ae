//! An amount of memory, as people write it: `512M` or `2G` as `orlop run` takes it, `512Mi` or `2Gi` as Kubernetes does. Both mean the same.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

const MIB: u64 = 1 << 20;

/// An amount of memory in whole MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// What is not a size.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a size is whole MiB, such as 512M or 2G")]
pub struct NotASize;

impl MemorySize {
    /// So many MiB.
    pub const fn of_mib(mib: u64) -> Self {
        Self(mib)
    }

    /// So many bytes, and what is missing to a whole MiB.
    pub fn of_bytes(bytes: u64) -> Self {
        Self(bytes.div_ceil(MIB))
    }

    /// In MiB.
    pub fn mib(self) -> u64 {
        self.0
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(MIB)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0)
    }
}

impl FromStr for MemorySize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let number = text.strip_suffix("iB").unwrap_or(text);
        let number = number.strip_suffix('i').unwrap_or(number);
        let unit = |units: [char; 2]| number.strip_suffix(units);
        let (digits, shift) = None
            .or(unit(['k', 'K']).map(|digits| (digits, 10)))
            .or(unit(['m', 'M']).map(|digits| (digits, 20)))
            .or(unit(['g', 'G']).map(|digits| (digits, 30)))
            .or(unit(['t', 'T']).map(|digits| (digits, 40)))
            .unwrap_or((number, 0));
        // Rust's numbers may begin with a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotASize);
        }
        let bytes = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .filter(|bytes| bytes.is_multiple_of(MIB))
            .ok_or(NotASize)?;
        Ok(Self(bytes / MIB))
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse()
            .map_err(|error| serde::de::Error::custom(format_args!("{text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, mib) in [
            ("512M", 512),
            ("512Mi", 512),
            ("512MiB", 512),
            ("2G", 2048),
            ("2Gi", 2048),
            ("1T", 1 << 20),
            ("1024k", 1),
            ("1048576", 1),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(MemorySize::of_mib(mib)), "{text}");
        }
        for text in [
            "",
            "M",
            "-1M",
            "+1M",
            "1.5G",
            "1 G",
            "1000",
            "512Q",
            "1E",
            "i",
            "99999999999T",
        ] {
            assert_eq!(text.parse::<MemorySize>(), Err(NotASize), "{text}");
        }
        assert_eq!(MemorySize::of_bytes(1), MemorySize::of_mib(1));
        assert_eq!(MemorySize::of_bytes(u64::MAX).bytes(), u64::MAX);
        assert_eq!(MemorySize::of_mib(256).to_string(), "256M");
    }
}
