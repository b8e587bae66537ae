//! `--memory`: what a VM's memory is made of on the host.

use std::fmt;
use std::str::FromStr;

use super::parse::{Fields, ParseError};

/// What RAM is made of on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBacking {
    /// Whether it is a memory file though no device needs that yet. A VM that begins with a shared directory has one anyway.
    pub shared: bool,
    /// The huge pages that it consists of, which is a memory file as well.
    pub hugepages: Option<HugePages>,
}

/// The sizes of huge pages that x86-64 has beside its pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// 2 MiB.
    Of2M,
    /// 1 GiB.
    Of1G,
}

impl MemoryBacking {
    /// What is said of it among `fields`.
    pub(super) fn of(fields: &mut Fields<'_>) -> Result<Self, ParseError> {
        Ok(MemoryBacking {
            shared: fields.flag("shared"),
            hugepages: fields.take("hugepages").map(str::parse).transpose()?,
        })
    }
}

impl HugePages {
    /// A page's size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            HugePages::Of2M => 2 << 20,
            HugePages::Of1G => 1 << 30,
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HugePages::Of2M => "2 MiB",
            HugePages::Of1G => "1 GiB",
        })
    }
}

impl FromStr for HugePages {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "2M" => Ok(HugePages::Of2M),
            "1G" => Ok(HugePages::Of1G),
            _ => Err(ParseError::new(format!(
                "hugepages={text}: huge pages have 2M or 1G"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryConfig;

    #[test]
    fn memory_is_a_size_and_what_it_is_made_of() {
        let memory = |text: &str| text.parse::<MemoryConfig>().unwrap();
        let plain = memory("512M");
        assert_eq!(plain.size.bytes(), 512 << 20);
        assert_eq!(plain.backing, MemoryBacking::default());
        assert!(memory("512M,max=1G,shared").backing.shared);
        assert!(memory("512M,shared").backing.shared);
        let huge = memory("4G,hugepages=1G,shared").backing;
        assert_eq!((huge.shared, huge.hugepages), (true, Some(HugePages::Of1G)));
        assert_eq!(HugePages::Of2M.bytes(), 2 << 20);
    }

    #[test]
    fn what_it_cannot_be_made_of_is_refused() {
        for (text, hint) in [
            ("", "512M or 4G"),
            ("shared", "512M or 4G"),
            ("512M,", "means nothing here"),
            ("512M,hugepages", "means nothing here"),
            ("512M,huge=2M", "[,shared]"),
            ("512M,hugepages=4K", "2M or 1G"),
            ("512M,shared=1", "means nothing here"),
            ("33M,hugepages=2M", "whole number of huge pages of 2 MiB"),
            ("1G,max=2G,hugepages=2M", "comes and goes"),
            ("1536M,hugepages=1G", "whole number of huge pages of 1 GiB"),
        ] {
            let error = text.parse::<MemoryConfig>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
