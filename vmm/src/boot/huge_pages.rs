//! Where a guest's RAM is asked to be in huge pages of the host's: where the guest's kernel uses nearly all of it as it boots.
//!
//! A guest leaves for the host whenever it touches a page for the first time, be that a page of 4 KiB or one of 2 MiB. All of its RAM in huge pages
//! would spare most of that, and have an idle guest hold much that it has never touched. But Linux touches some places from end to end, and which
//! these are does not depend on what it is to do:
//!
//! - its own code and data, with what lies around them in the same huge page;
//! - the top of the RAM, from which it takes what it needs before it has a page allocator: 64 bytes for each page of RAM (`struct page`), and some
//!   3.5 MiB of page tables, per-CPU areas and hash tables;
//! - the first large block of that allocator, which begins with the lowest that is whole and free.
//!
//! Of the 4,899 pages that our own kernel touched in 128 MiB until its process 1, 3,700 were there. A kernel that does otherwise, or a host without huge pages
//! to give, is as well off as without the advice.

use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::Initramfs;
use crate::memory::{GuestMemory, Region};

/// The size of a huge page.
const HUGE: u64 = 2 << 20;
/// One byte in so many is for `struct page`: 64 of 4,096.
const PAGE_STRUCTS: u64 = 64;
/// What else Linux takes from the top of the RAM.
const EARLY: u64 = 4 << 20;
/// The page allocator's first block of its largest size, of those below the kernel: one lower is not free as a whole.
const FIRST_BLOCK: (GuestAddress, GuestAddress) = (GuestAddress(8 << 20), GuestAddress(12 << 20));

/// Asks for huge pages wherever one would have something of the range from `start` to `end` in it, and lies in RAM as a whole.
pub fn want(memory: &GuestMemory, start: GuestAddress, end: GuestAddress) {
    for region in memory.iter() {
        let last = region.start_addr().raw_value().saturating_add(region.len());
        let start = start.raw_value() / HUGE * HUGE;
        let end = end
            .raw_value()
            .checked_next_multiple_of(HUGE)
            .unwrap_or(last);
        let start = start.max(region.start_addr().raw_value());
        let end = end.min(last / HUGE * HUGE);
        if start < end {
            advise(region, start - region.start_addr().raw_value(), end - start);
        }
    }
}

/// Asks for huge pages where Linux takes its first memory.
pub fn want_for_linux(memory: &GuestMemory, initramfs: Option<Initramfs>) {
    want(memory, FIRST_BLOCK.0, FIRST_BLOCK.1);
    let ram: u64 = memory.iter().map(|region| region.len()).sum();
    let ram_end = memory.last_addr().raw_value().saturating_add(1);
    // Below the initramfs, where that is at the top.
    let top = match initramfs {
        Some(at) if at.start.raw_value().saturating_add(at.size) > ram_end.saturating_sub(HUGE) => {
            at.start.raw_value()
        }
        _ => ram_end,
    };
    let need = ram / PAGE_STRUCTS + EARLY;
    want(
        memory,
        GuestAddress(top.saturating_sub(need)),
        GuestAddress(top),
    );
}

/// The guest address of what lies at `host` in this process.
pub fn address_of(memory: &GuestMemory, host: *const u8) -> Option<GuestAddress> {
    memory.iter().find_map(|region| {
        let offset = (host as u64).checked_sub(region.mapping().as_ptr() as u64)?;
        (offset < region.len()).then(|| region.start_addr().unchecked_add(offset))
    })
}

fn advise(region: &Region, offset: u64, len: u64) {
    // Within the region's mapping. usize: x86_64 only.
    let start = region.mapping().as_ptr().wrapping_add(offset as usize);
    // SAFETY: the range lies within the mapping, and the advice changes nothing of what is in it.
    unsafe { libc::madvise(start.cast(), len as usize, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::layout;

    const MIB: u64 = 1 << 20;

    /// RAM of so many MiB below the hole, and above it.
    fn ram(low: u64, high: u64) -> GuestMemory {
        let mut ranges = vec![(GuestAddress(0), (low * MIB) as usize)];
        if high > 0 {
            ranges.push((GuestAddress(layout::HOLE_END), (high * MIB) as usize));
        }
        crate::memory::anonymous(&ranges).unwrap()
    }

    /// Where huge pages are wanted, in MiB of the guest's addresses: the mappings whose flags have `hg`.
    fn wanted(memory: &GuestMemory) -> Vec<(u64, u64)> {
        let mut wanted = Vec::<(u64, u64)>::new();
        let mut range = (0, 0);
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            if let Some((start, end)) = line.split(' ').next().and_then(|it| it.split_once('-')) {
                let number = |text| u64::from_str_radix(text, 16).unwrap_or_default();
                range = (number(start), number(end));
            } else if line.starts_with("VmFlags:")
                && line.contains(" hg")
                && let Some(start) = address_of(memory, range.0 as *const u8)
            {
                let start = start.raw_value();
                let end = start + (range.1 - range.0);
                wanted.push((start / MIB, end / MIB));
            }
        }
        // The host has them in an order of its own.
        wanted.sort_unstable();
        wanted
    }

    #[test]
    fn a_range_is_rounded_outwards_and_stays_within_ram() {
        let memory = ram(63, 0);
        want(&memory, GuestAddress(16 * MIB + 5), GuestAddress(19 * MIB));
        want(&memory, GuestAddress(61 * MIB), GuestAddress(u64::MAX));
        want(&memory, GuestAddress(9 * MIB), GuestAddress(5 * MIB));
        assert_eq!(wanted(&memory), [(16, 20), (60, 62)]);
        assert_eq!(address_of(&memory, std::ptr::null()), None);
    }

    #[test]
    fn linux_takes_its_first_memory_below_the_initramfs_or_at_the_end_of_all_ram() {
        let memory = ram(128, 0);
        let initramfs = Initramfs {
            start: GuestAddress(119 * MIB),
            size: 9 * MIB,
        };
        want_for_linux(&memory, Some(initramfs));
        assert_eq!(wanted(&memory), [(8, 12), (112, 120)]);

        let memory = ram(3072, 1024);
        let initramfs = Initramfs {
            start: GuestAddress(3063 * MIB),
            size: 9 * MIB,
        };
        want_for_linux(&memory, Some(initramfs));
        let end = (layout::HOLE_END >> 20) + 1024;
        assert_eq!(wanted(&memory), [(8, 12), (end - 68, end)]);
        // A guest that is too small for it.
        want_for_linux(&ram(4, 0), None);
    }
}
