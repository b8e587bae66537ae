//! What a VMM's process costs beyond its guest's RAM.

use std::fs;

use anyhow::{Context, Result};

/// The private memory of process `id` in bytes, without what is mapped in one stretch as large as the guest's RAM, which is the guest's RAM.
///
/// # Errors
/// When the process has gone, or its `smaps` reads otherwise than proc(5) says.
pub fn beyond_ram(id: u32, ram: u64) -> Result<u64> {
    let path = format!("/proc/{id}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    count(&text, ram).with_context(|| format!("{path} is not understood"))
}

fn count(smaps: &str, ram: u64) -> Option<u64> {
    let mut stretches: Vec<Mapping> = Vec::new();
    for mapping in mappings(smaps)? {
        match stretches.last_mut() {
            // The guest's RAM is one stretch even where parts of it are in pages of another size.
            Some(last) if last.end == mapping.start && last.dumped == mapping.dumped => {
                last.end = mapping.end;
                last.private += mapping.private;
            }
            _ => stretches.push(mapping),
        }
    }
    let own = |stretch: &&Mapping| stretch.end - stretch.start < ram;
    let private = |stretch: &Mapping| stretch.private;
    Some(stretches.iter().filter(own).map(private).sum())
}

/// A mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    /// The bytes in it that are private.
    private: u64,
    /// Whether core dumps have it. A VMM may leave its guest's RAM out of them.
    dumped: bool,
}

fn mappings(smaps: &str) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let (field, value) = line.split_once(char::is_whitespace)?;
        // A mapping begins with its range of addresses.
        if !field.ends_with(':') {
            let (start, end) = field.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).ok();
            mappings.push(Mapping {
                start: address(start)?,
                end: address(end)?,
                private: 0,
                dumped: true,
            });
            continue;
        }
        let mapping = mappings.last_mut()?;
        match field {
            "Private_Clean:" | "Private_Dirty:" => {
                mapping.private += value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
            }
            "VmFlags:" => mapping.dumped = !value.split_whitespace().any(|flag| flag == "dd"),
            _ => {}
        }
    }
    mappings
        .iter()
        .all(|mapping| mapping.start < mapping.end)
        .then_some(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_is_left_out() {
        let smaps = "00400000-00500000 r-xp 00000000 08:01 1 /usr/bin/vmm\n\
                     Private_Clean:        12 kB\n\
                     Private_Dirty:         4 kB\n\
                     7f0000000000-7f0004000000 rw-p 00000000 00:00 0 \n\
                     Private_Clean:         0 kB\n\
                     Private_Dirty:     32768 kB\n\
                     VmFlags: rd wr dd hg\n\
                     7f0004000000-7f0008000000 rw-p 00000000 00:00 0 \n\
                     Private_Dirty:     32768 kB\n\
                     VmFlags: rd wr dd\n\
                     7f0008000000-7f0008001000 rw-p 00000000 00:00 0 \n\
                     Private_Dirty:         4 kB\n\
                     VmFlags: rd wr\n";
        assert_eq!(count(smaps, 128 << 20), Some(20 << 10));
        assert_eq!(count(smaps, 256 << 20), Some((20 << 10) + (64 << 20)));
        assert_eq!(count("nonsense", 1), None);
    }
}
