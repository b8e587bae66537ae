//! RAM of huge pages: a memory file in the host's pool of them.
//!
//! All pages are reserved when the file is mapped, and none is had before it is touched. A page that is not there when a guest touches it
//! would be the end of the VM, so what the pool has not got is refused at once, and nothing is given back before the end.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::mmap::{FromRangesError, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::{Error, Region};
use crate::config::{HugePages, MemorySize};

/// Why the host has not enough huge pages.
#[derive(Debug, thiserror::Error)]
pub enum NoPages {
    /// It knows none of this size.
    #[error("this host has no huge pages of {0}: {path} is not there", path = pool(*.0).display())]
    Unknown(HugePages),
    /// The pool is too small.
    #[error(
        "the VM needs {needed} huge pages of {pages}, and {free} are free; make more: echo {total} >{path}",
        path = pool(*pages).join("nr_hugepages").display()
    )]
    TooFew {
        /// How many there must be.
        needed: u64,
        /// How many there are that nobody has or has reserved.
        free: u64,
        /// How many the pool must have for it.
        total: u64,
        /// Their size.
        pages: HugePages,
    },
    /// Their number cannot be read.
    #[error("cannot read how many huge pages are free: {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A memory file of `size` bytes, which are whole pages.
pub(super) fn memory_file(size: MemorySize, pages: HugePages) -> Result<File, Error> {
    enough(size, pages)?;
    let size_flag = match pages {
        HugePages::Of2M => libc::MFD_HUGE_2MB,
        HugePages::Of1G => libc::MFD_HUGE_1GB,
    };
    let size = size.bytes();
    super::file_with(size, libc::MFD_HUGETLB | size_flag)
        .map_err(|source| Error::File { size, source })
}

/// Maps a part of that file. Without MAP_NORESERVE, which a mapping of guest memory has otherwise: all its pages are reserved, or this fails.
pub(super) fn region(
    start: GuestAddress,
    len: usize,
    part: FileOffset,
) -> Result<Arc<Region>, FromRangesError> {
    let mapping = MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_file_offset(part)
        .with_hugetlbfs(true)
        .build()?;
    let mapping = GuestRegionMmap::new(mapping, start);
    let mapping = mapping.ok_or(FromRangesError::InvalidGuestRegion)?;
    Ok(Arc::new(Region::ram(mapping)))
}

/// Whether the pool has enough.
fn enough(size: MemorySize, pages: HugePages) -> Result<(), NoPages> {
    let pool = pool(pages);
    if !pool.exists() {
        return Err(NoPages::Unknown(pages));
    }
    let number = |name: &str| {
        let path = pool.join(name);
        let text = fs::read_to_string(&path);
        let number = text.and_then(|text| text.trim().parse().map_err(std::io::Error::other));
        number.map_err(|source| NoPages::Read { path, source })
    };
    let needed = size.bytes() / pages.bytes();
    let all: u64 = number("nr_hugepages")?;
    let reserved: u64 = number("resv_hugepages")?;
    let free = number("free_hugepages")?.saturating_sub(reserved);
    if needed <= free {
        return Ok(());
    }
    Err(NoPages::TooFew {
        needed,
        free,
        total: all.saturating_add(needed - free),
        pages,
    })
}

/// The directory of the host's pool.
fn pool(pages: HugePages) -> PathBuf {
    let kib = pages.bytes() >> 10;
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB").into()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::memory::{Sharing, give_back, map};

    #[test]
    fn more_than_the_pool_has_is_refused_with_what_makes_it_larger() {
        let pages = HugePages::Of2M;
        let error = enough("1T".parse().unwrap(), pages).unwrap_err();
        match &error {
            // A kernel without them.
            NoPages::Unknown(_) => assert!(!pool(pages).exists()),
            error => {
                let text = error.to_string();
                let all = fs::read_to_string(pool(pages).join("nr_hugepages")).unwrap();
                assert!(text.contains("needs 524288 huge pages of 2 MiB"), "{text}");
                let path = ">/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
                assert!(text.ends_with(path), "{text}");
                let total: u64 = all.trim().parse().unwrap();
                assert!(
                    matches!(error, NoPages::TooFew { total: then, .. } if *then >= total),
                    "{text}"
                );
            }
        }
    }

    /// With what the machine has of them. The stories see to it that there are some.
    #[test]
    fn huge_ram_is_one_file_whose_pages_stay() {
        let size: MemorySize = "32M".parse().unwrap();
        let pages = HugePages::Of2M;
        if let Err(error) = enough(size, pages) {
            println!("skipped: {error}");
            return;
        }
        let memory = map(size, Sharing::Huge(pages)).unwrap();
        let region = memory.iter().next().unwrap();
        assert_eq!(region.mapping().is_hugetlbfs(), Some(true));
        let host = region.mapping().as_ptr() as usize;
        assert_eq!(host % (2 << 20), 0, "{host:#x}");
        memory.write_obj(7u8, GuestAddress(2 << 20)).unwrap();
        assert_eq!(give_back(&memory, GuestAddress(0), 16 << 20).unwrap(), 0);
        let there: u8 = memory.read_obj(GuestAddress(2 << 20)).unwrap();
        assert_eq!(there, 7);
    }
}
