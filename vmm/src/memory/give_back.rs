//! Giving RAM that the guest does not need back to the host. It stays the guest's: what is given back reads as zeros, and is had anew when
//! it is touched.
//!
//! Whoever gives back does it here, so that here is where it is forbidden for memory that must stay where it is, which a device of the
//! host's reaches by itself ([`super::dma`]). Huge pages are not given back: what goes back to the host's pool may be another's
//! when the guest touches it anew, and then there is no page for it.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

use super::checked;
use super::region::{GuestMemory, Region};

/// Why a range was not given back.
#[derive(Debug, thiserror::Error)]
pub enum NotGivenBack {
    /// It is not RAM, or not all of it is. Nothing of it was given back.
    #[error("{len} bytes at {start:#x} are not all RAM")]
    Outside {
        /// Where it begins.
        start: u64,
        /// How long it is.
        len: u64,
    },
    /// The host refused.
    #[error("the host did not take back {len} bytes of RAM")]
    Host {
        /// As many of them.
        len: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Gives back the whole pages of the host in the `len` bytes from `start` on, and says how many bytes they are. A page that is in the
/// range only in part stays as it is, and so does a huge page, and all that devices of the host's reach.
///
/// # Errors
/// See [`NotGivenBack`].
pub fn give_back(memory: &GuestMemory, start: GuestAddress, len: u64) -> Result<u64, NotGivenBack> {
    let outside = || NotGivenBack::Outside {
        start: start.raw_value(),
        len,
    };
    let count = usize::try_from(len).map_err(|_| outside())?;
    if !GuestMemoryBackend::check_range(memory, start, count) {
        return Err(outside());
    }
    let (mut done, mut given) = (0, 0);
    while done < len {
        let at = start.checked_add(done).ok_or_else(outside)?;
        let (region, offset) = memory.to_region_addr(at).ok_or_else(outside)?;
        let offset = offset.raw_value();
        let piece = region.len().saturating_sub(offset).min(len - done);
        given += give_back_of(region, offset, piece)?;
        done += piece;
    }
    Ok(given)
}

/// The same within a region, whose pages and whose file's begin together.
fn give_back_of(region: &Region, offset: u64, len: u64) -> Result<u64, NotGivenBack> {
    if region.mapping().is_hugetlbfs() == Some(true) {
        return Ok(0);
    }
    let pinned = region.pinned();
    if *pinned {
        return Ok(0);
    }
    let page = host_page();
    let end = (offset + len) / page * page;
    let start = offset.next_multiple_of(page);
    if start >= end {
        return Ok(0);
    }
    let len = end - start;
    let done = match region.file_offset() {
        Some(file) => punch(file, start, len),
        None => drop_pages(region, start, len),
    };
    match done {
        Ok(()) => Ok(len),
        Err(source) => Err(NotGivenBack::Host { len, source }),
    }
}

/// Of a memory file: the hole is one for everybody who has mapped it.
pub(super) fn punch(file: &FileOffset, start: u64, len: u64) -> io::Result<()> {
    let offset = |number: u64| libc::off_t::try_from(number).map_err(io::Error::other);
    let (start, len) = (offset(file.start() + start)?, offset(len)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the file is open for as long as the region is there. Its pages are guest memory, which nobody believes to be unchanging.
    checked(unsafe { libc::fallocate(file.file().as_raw_fd(), mode, start, len) })
}

/// Of anonymous memory that nobody else has mapped.
fn drop_pages(region: &Region, start: u64, len: u64) -> io::Result<()> {
    let host = region
        .get_host_address(MemoryRegionAddress(start))
        .map_err(io::Error::other)?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    // SAFETY: these are whole pages of the region's own mapping, which stays. They are guest memory, which nobody believes to be
    // unchanging, and zeros are as good as any other bytes there.
    checked(unsafe { libc::madvise(host.cast(), len, libc::MADV_DONTNEED) })
}

/// The size of the host's pages in bytes.
fn host_page() -> u64 {
    // SAFETY: it only says a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It never fails.
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{Sharing, map};

    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;
    const BOTH: [Sharing; 2] = [Sharing::Private, Sharing::Shared];

    /// Which of the pages of the `len` bytes from `start` on the host has in memory.
    pub fn resident(memory: &GuestMemory, start: u64, len: u64) -> Vec<bool> {
        let host = memory.get_host_address(GuestAddress(start)).unwrap();
        let mut pages = vec![0_u8; (len / PAGE) as usize];
        // SAFETY: the range is mapped, and the vector has a byte for each page of it.
        let done = unsafe { libc::mincore(host.cast(), len as usize, pages.as_mut_ptr()) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        pages.iter().map(|page| page & 1 != 0).collect()
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn fill(memory: &GuestMemory, start: u64, len: u64) {
        let bytes = vec![0x5a; len as usize];
        memory.write_slice(&bytes, GuestAddress(start)).unwrap();
    }

    #[test]
    fn what_is_given_back_is_gone_and_can_be_had_again() {
        for sharing in BOTH {
            // It has a region above the hole as well, which begins somewhere else in the file.
            let memory = map("3100M".parse().unwrap(), sharing).unwrap();
            for start in [MIB, 4 << 30, (4 << 30) + MIB] {
                fill(&memory, start, 8 * PAGE);
                let from = GuestAddress(start + 2 * PAGE);
                assert_eq!(give_back(&memory, from, 4 * PAGE).unwrap(), 4 * PAGE);
                let there = resident(&memory, start, 8 * PAGE);
                let wanted = [true, true, false, false, false, false, true, true];
                assert_eq!(there, wanted, "{sharing:?} {start:#x}");
                assert_eq!(byte(&memory, start + 2 * PAGE - 1), 0x5a);
                assert_eq!(byte(&memory, start + 2 * PAGE), 0);
                assert_eq!(byte(&memory, start + 6 * PAGE - 1), 0);
                assert_eq!(byte(&memory, start + 6 * PAGE), 0x5a);
                fill(&memory, start, 8 * PAGE);
                assert_eq!(byte(&memory, start + 3 * PAGE), 0x5a);
            }
        }
    }

    #[test]
    fn a_page_that_is_in_the_range_in_part_stays() {
        for sharing in BOTH {
            let memory = map("32M".parse().unwrap(), sharing).unwrap();
            fill(&memory, MIB, 4 * PAGE);
            for (start, len, given) in [
                (0, 0, 0),
                (0, PAGE - 1, 0),
                (1, PAGE - 1, 0),
                (1, PAGE, 0),
                (1, 2 * PAGE - 2, 0),
                (1, 2 * PAGE - 1, PAGE),
                (PAGE - 1, 2 * PAGE, PAGE),
            ] {
                fill(&memory, MIB, 4 * PAGE);
                let from = GuestAddress(MIB + start);
                assert_eq!(give_back(&memory, from, len).unwrap(), given);
                let gone = (0..4 * PAGE)
                    .filter(|at| byte(&memory, MIB + at) == 0)
                    .count();
                assert_eq!(gone as u64, given, "{len} bytes from {start} on");
            }
        }
    }

    #[test]
    fn a_range_that_is_not_all_ram_is_refused_as_a_whole() {
        for sharing in BOTH {
            let memory = map("3100M".parse().unwrap(), sharing).unwrap();
            let (hole, high, end) = (3 << 30, 4 << 30, (4 << 30) + 28 * MIB);
            fill(&memory, hole - PAGE, PAGE);
            fill(&memory, end - PAGE, PAGE);
            for (start, len) in [
                (hole, PAGE),
                (hole - PAGE, 2 * PAGE),
                (hole - PAGE, 2 << 30),
                (high - PAGE, 2 * PAGE),
                (end - PAGE, PAGE + 1),
                (end, PAGE),
                (0, u64::MAX),
                (u64::MAX - PAGE + 1, PAGE),
                (u64::MAX, PAGE),
            ] {
                let refused = give_back(&memory, GuestAddress(start), len);
                assert!(
                    matches!(refused, Err(NotGivenBack::Outside { .. })),
                    "{refused:?}"
                );
            }
            assert_eq!(byte(&memory, hole - PAGE), 0x5a);
            assert_eq!(byte(&memory, end - PAGE), 0x5a);
        }
    }
}
