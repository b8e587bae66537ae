//! What the guest is told of its address space, in the numbers that e820 and PVH share.

use std::ops;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::x86_64::layout;
use crate::devices::virtio::GuestMemory;

/// What a range is (ACPI 6.5, table 15.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// To be used.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// Persistent memory that no table describes: not ACPI's, but what Linux calls `E820_TYPE_PRAM`.
    Persistent = 12,
}

/// A part of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The memory map: all RAM but the PC's area below 1 MiB, the ECAM, which Linux wants to see reserved, and persistent memory if there is any.
pub fn of(memory: &GuestMemory, rom: Option<ops::Range<u64>>) -> Vec<Range> {
    let low = Range {
        start: 0,
        size: layout::LOW_RAM_END,
        kind: RangeKind::Ram,
    };
    let bios = Range {
        start: layout::LOW_RAM_END,
        size: layout::HIGH_RAM_START - layout::LOW_RAM_END,
        kind: RangeKind::Reserved,
    };
    let ecam = Range {
        start: layout::ECAM_START,
        size: layout::ECAM_SIZE,
        kind: RangeKind::Reserved,
    };
    let mut map = vec![low, bios];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(layout::HIGH_RAM_START);
        let end = region.start_addr().raw_value().saturating_add(region.len());
        if end > start {
            map.push(Range {
                start,
                size: end - start,
                kind: RangeKind::Ram,
            });
        }
    }
    map.push(ecam);
    map.extend(rom.map(|rom| Range {
        start: rom.start,
        size: rom.end.saturating_sub(rom.start),
        kind: RangeKind::Persistent,
    }));
    map.sort_by_key(|range| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn the_map_neither_overlaps_nor_shows_the_hole_as_ram() {
        let ranges = [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 1 << 30)];
        let memory = crate::memory::anonymous(&ranges).unwrap();
        let rom = layout::ROM_START..layout::ROM_START + layout::ROM_SIZE;
        let map = of(&memory, Some(rom));
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:x?}");
        }
        let ram: u64 = map
            .iter()
            .filter(|r| r.kind == RangeKind::Ram)
            .map(|r| r.size)
            .sum();
        assert_eq!(
            ram,
            (4 << 30) - (layout::HIGH_RAM_START - layout::LOW_RAM_END)
        );
        let in_hole = |r: &&Range| r.start >= layout::HOLE_START && r.start < layout::HOLE_END;
        assert!(map.iter().filter(in_hole).all(|r| r.kind != RangeKind::Ram));
    }
}
