//! `--cpus` and `--memory`: how large a VM is when it boots, and how large it may become.

use std::str::FromStr;

use super::parse::{Fields, ParseError};
use super::{HugePages, MemoryBacking, MemorySize, VcpuCount};
use crate::memory::pluggable;

/// Processors: `N[,max=N]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpusConfig {
    /// How many the VM boots with.
    pub boot: VcpuCount,
    /// How many it may have, if the number may change.
    pub most: Option<VcpuCount>,
}

/// Memory: `SIZE[,max=SIZE][,shared][,hugepages=2M|1G]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// How much RAM the VM has at least, and boots with.
    pub size: MemorySize,
    /// How much memory it may have, if that may change.
    pub most: Option<MemorySize>,
    /// What it is made of.
    pub backing: MemoryBacking,
}

impl CpusConfig {
    /// As many as it can ever have.
    pub fn limit(self) -> VcpuCount {
        self.most.unwrap_or(self.boot)
    }
}

impl FromStr for CpusConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (boot, mut fields) = first_and(text, "N[,max=N]")?;
        let most = fields.take("max");
        fields.end()?;
        let boot: VcpuCount = boot.parse()?;
        let most: Option<VcpuCount> = most.map(str::parse).transpose()?;
        if most.is_some_and(|most| most.get() < boot.get()) {
            return Err(ParseError::new(
                "max is less than the number of vCPUs that the VM boots with",
            ));
        }
        Ok(CpusConfig { boot, most })
    }
}

impl MemoryConfig {
    /// How many bytes may come and go.
    pub fn pluggable(self) -> u64 {
        let most = self.most.map_or(0, MemorySize::bytes);
        most.saturating_sub(self.size.bytes())
    }
}

impl MemoryConfig {
    /// Whether it can consist of these pages.
    fn fits(self, pages: HugePages) -> Result<(), ParseError> {
        let size = self.size;
        if !size.bytes().is_multiple_of(pages.bytes()) {
            return Err(ParseError::new(format!(
                "{size} of memory are no whole number of huge pages of {pages}: give a multiple of that, or leave out hugepages="
            )));
        }
        if self.most.is_some() {
            return Err(ParseError::new(
                "memory that comes and goes is not in huge pages, which stay the VM's: leave out max= or hugepages=",
            ));
        }
        Ok(())
    }
}

impl FromStr for MemoryConfig {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (size, mut fields) = first_and(text, "SIZE[,max=SIZE][,shared][,hugepages=2M|1G]")?;
        let memory = MemoryConfig {
            size: size.parse()?,
            most: fields.take("max").map(str::parse).transpose()?,
            backing: MemoryBacking::of(&mut fields)?,
        };
        fields.end()?;
        if memory
            .most
            .is_some_and(|most| most.bytes() < memory.size.bytes())
        {
            return Err(ParseError::new(
                "max is less than the memory that the VM boots with",
            ));
        }
        if let Some(pages) = memory.backing.hugepages {
            memory.fits(pages)?;
        }
        let block = pluggable::block_size(memory.pluggable());
        if !memory.pluggable().is_multiple_of(block) {
            return Err(ParseError::new(format!(
                "memory comes and goes by {} MiB: make max that much more, or a multiple of it",
                block >> 20
            )));
        }
        Ok(memory)
    }
}

/// The first value, and what follows it.
fn first_and<'t>(text: &'t str, form: &'static str) -> Result<(&'t str, Fields<'t>), ParseError> {
    match text.split_once(',') {
        Some((first, rest)) => Ok((first, Fields::of(rest, form)?)),
        None => Ok((text, Fields::none(form))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_vcpus_may_change_up_to_another() {
        let cpus = |text: &str| {
            let cpus: CpusConfig = text.parse().unwrap();
            (cpus.boot.get(), cpus.most.map(VcpuCount::get))
        };
        assert_eq!(cpus("2"), (2, None));
        assert_eq!(cpus("1,max=4"), (1, Some(4)));
        assert_eq!(cpus("4,max=4"), (4, Some(4)));
        for (text, hint) in [
            ("4,max=2", "less than"),
            ("1,max=0", "1 to 255"),
            ("1,max=256", "1 to 255"),
            ("0,max=1", "1 to 255"),
            ("1,most=4", "N[,max=N]"),
            ("1,max=2,max=3", "twice"),
            ("1,", "N[,max=N]"),
        ] {
            let error = text.parse::<CpusConfig>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn memory_may_change_up_to_another_size() {
        let memory = |text: &str| text.parse::<MemoryConfig>().unwrap();
        assert_eq!(memory("256M").pluggable(), 0);
        assert_eq!(memory("512M,max=2G").pluggable(), 1536 << 20);
        assert_eq!(memory("1G,max=1G").pluggable(), 0);
        assert_eq!(memory("1G,max=1T").pluggable(), 1023 << 30);
        for (text, hint) in [
            ("1G,max=512M", "less than"),
            ("1G,max=1025M", "by 2 MiB"),
            ("1G,max=2T", "32M to 1T"),
            ("1G,hotplug=1G", "SIZE[,max=SIZE]"),
        ] {
            let error = text.parse::<MemoryConfig>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
