//! The guest's RAM: lazily faulted host memory, in one region below the 32-bit hole and one above 4 GiB.

pub mod dma;
mod give_back;
mod huge;
pub mod own_code;
pub mod own_heap;
mod place;
pub mod pluggable;
mod region;
pub mod rom;
pub mod slots;
mod view;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

pub use give_back::{NotGivenBack, give_back};
pub use huge::NoPages;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
pub use region::{GuestMemory, Region, anonymous, backed};
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::x86_64::layout;
use crate::config::{HugePages, MemorySize};

/// Why the RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than there is.
    #[error(
        "the VM is to have {size} MiB of memory, and this machine has {host} MiB; give the VM less with --memory"
    )]
    HostSize {
        /// What was asked for, in MiB.
        size: u64,
        /// The host's RAM and swap space, in MiB.
        host: u64,
    },
    /// No memory file.
    #[error("cannot make a memory file of {size} bytes for the guest's RAM")]
    File {
        /// Its size.
        size: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No mapping.
    #[error("cannot map {size} bytes for the guest's RAM; give the VM less with --memory")]
    Map {
        /// The RAM's size.
        size: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// No huge pages.
    #[error(transparent)]
    HugePages(#[from] NoPages),
    /// The system did not take advice about the mapping.
    #[error("cannot leave the guest's RAM out of core dumps")]
    Advice(#[source] std::io::Error),
    /// Two regions in one place.
    #[error("memory that comes and goes would lie where there is RAM already")]
    Overlap(#[source] vm_memory::GuestRegionCollectionError),
    /// KVM did not take a region.
    #[error("KVM did not take the guest's RAM")]
    Kvm(#[source] kvm_ioctls::Error),
    /// A region has no host address.
    #[error("the guest's RAM has no host address")]
    Address(#[source] vm_memory::GuestMemoryError),
}

/// Who maps the RAM beside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    Private,
    /// A vhost-user backend: the RAM is a memory file that can be handed over.
    Shared,
    /// As that, and the memory file consists of huge pages, which are the VM's from now to its end.
    Huge(HugePages),
}

/// The parts of the address space that are RAM, for `size` bytes of it: what does not fit below the hole goes above 4 GiB.
pub fn ranges(size: MemorySize) -> Vec<(GuestAddress, usize)> {
    let low = size.bytes().min(layout::HOLE_START);
    let high = size.bytes() - low;
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if high > 0 {
        ranges.push((GuestAddress(layout::HOLE_END), high as usize));
    }
    ranges
}

/// Maps `size` bytes of RAM. No page of it is touched.
///
/// # Errors
/// When the host does not give the memory.
pub fn map(size: MemorySize, sharing: Sharing) -> Result<Arc<GuestMemory>, Error> {
    match host_memory() {
        Some(host) if host < size.bytes() => {
            return Err(Error::HostSize {
                size: size.bytes() >> 20,
                host: host >> 20,
            });
        }
        _ => {}
    }
    let ranges = ranges(size);
    let mapped = match sharing {
        Sharing::Private => anonymous(&ranges),
        Sharing::Shared => {
            let parts = parts(&ranges, memory_file(size.bytes())?);
            backed(parts.map(|(start, len, part)| (start, len, Some(part))))
        }
        Sharing::Huge(pages) => {
            let parts = parts(&ranges, huge::memory_file(size, pages)?);
            let regions = parts.map(|(start, len, part)| huge::region(start, len, part));
            let regions: Result<Vec<_>, _> = regions.collect();
            regions.and_then(|regions| Ok(GuestMemory::from_arc_regions(regions)?))
        }
    };
    let mapped = mapped.map_err(|source| Error::Map {
        size: size.bytes(),
        source,
    })?;
    leave_out_of_dumps(&mapped)?;
    Ok(Arc::new(mapped))
}

/// `memory`, and a region that is not in it yet.
///
/// # Errors
/// When they overlap.
pub fn with(memory: &GuestMemory, region: &Arc<Region>) -> Result<GuestMemory, Error> {
    memory.insert_region(region.clone()).map_err(Error::Overlap)
}

/// The ranges, one behind the other in a memory file.
fn parts(
    ranges: &[(GuestAddress, usize)],
    file: File,
) -> impl Iterator<Item = (GuestAddress, usize, FileOffset)> {
    let file = Arc::new(file);
    ranges.iter().scan(0, move |offset, &(start, len)| {
        let part = FileOffset::from_arc(file.clone(), *offset);
        *offset += len as u64;
        Some((start, len, part))
    })
}

/// A VMM that crashes dumps what is its own, not its guest's.
fn leave_out_of_dumps(memory: &GuestMemory) -> Result<(), Error> {
    for region in memory.iter() {
        let host = memory
            .get_host_address(region.start_addr())
            .map_err(Error::Address)?;
        // SAFETY: the range is mapped, and the advice changes nothing of what is in it.
        let advised =
            unsafe { libc::madvise(host.cast(), region.len() as usize, libc::MADV_DONTDUMP) };
        checked(advised).map_err(Error::Advice)?;
    }
    Ok(())
}

/// Makes the RAM known to KVM. To be done before the interrupt controllers exist: with them, each slot costs milliseconds on
/// some hosts.
///
/// # Errors
/// What KVM says.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.address_for_kernel(),
        };
        // SAFETY: the range is mapped for as long as `memory` lives, and the VM's owner keeps both together.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::Kvm)?;
    }
    Ok(())
}

/// The host's RAM and swap space in bytes. Pages are had only when they are touched, so the system itself would say no later, when
/// it can only kill.
fn host_memory() -> Option<u64> {
    // SAFETY: all zeros is a valid `sysinfo`, and the call writes one.
    let (result, info) = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        (libc::sysinfo(&raw mut info), info)
    };
    let units = info.totalram.checked_add(info.totalswap)?;
    (result == 0).then(|| units.saturating_mul(info.mem_unit.into()))
}

/// Lets this process lock all of its memory, if it may have that: what devices of the host's reach counts as locked.
pub fn raise_lock_limit() {
    let all = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: it reads one rlimit, which lives through the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const all) } == 0 {
        return;
    }
    if let Some(mut limit) = limits() {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above. What it allows is enough, or the kernel says that it is not.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    }
}

/// How much memory this process may lock, in bytes; `None` where there is no limit.
pub fn lock_limit() -> Option<u64> {
    let limit = limits()?.rlim_cur;
    (limit != libc::RLIM_INFINITY).then_some(limit)
}

fn limits() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: it writes one rlimit, which lives through the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (got == 0).then_some(limit)
}

/// How many bytes a guest has; of memory that comes and goes, what could come.
pub fn size(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

fn checked(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A file of `size` bytes that is nowhere but in memory.
///
/// # Errors
/// What the system says.
pub fn file(size: u64) -> std::io::Result<File> {
    file_with(size, 0)
}

/// The same with further flags of memfd_create(2).
fn file_with(size: u64, flags: libc::c_uint) -> std::io::Result<File> {
    // SAFETY: the name is a C string; the result is checked before it is used.
    let fd = unsafe { libc::memfd_create(c"orlop-ram".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made, and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

fn memory_file(size: u64) -> Result<File, Error> {
    file(size).map_err(|source| Error::File { size, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        let size: MemorySize = "4608M".parse().unwrap();
        assert_eq!(
            ranges(size),
            [
                (GuestAddress(0), 3 << 30),
                (GuestAddress(4 << 30), 1536 << 20)
            ]
        );
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        let error = map("1T".parse().unwrap(), Sharing::Private).unwrap_err();
        assert!(
            matches!(error, Error::HostSize { size: 1_048_576, host } if host > 0),
            "{error}"
        );
    }

    #[test]
    fn a_small_guest_has_one_region() {
        let size: MemorySize = "128M".parse().unwrap();
        assert_eq!(ranges(size), [(GuestAddress(0), 128 << 20)]);
    }

    #[test]
    fn shared_ram_lies_in_one_file_without_overlap() {
        let memory = map("4G".parse().unwrap(), Sharing::Shared).unwrap();
        let offsets: Vec<u64> = memory
            .iter()
            .map(|r| r.file_offset().unwrap().start())
            .collect();
        assert_eq!(offsets, [0, 3 << 30]);
    }
}
