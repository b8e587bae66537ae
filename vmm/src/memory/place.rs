//! Where guest memory is mapped in this process: at a multiple of a huge page's size, as it is for the guest.
//!
//! KVM gives a guest a huge page of the host's as one only where both agree on where a huge page begins. A mapping begins where the kernel
//! puts it, which before Linux 6.7 is at any page. Then each page of 4 KiB costs an exit when the guest first touches it, however large the
//! host's pages are: 1,800 of the 8,800 that a small guest's boot took.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};

use vm_memory::FileOffset;

/// The size of a huge page.
pub(super) const HUGE: usize = 2 << 20;

/// A range of this process's addresses, and what is mapped there. Both go when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it is a range of addresses; whoever reads and writes through it is in charge of how.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// Maps `len` bytes, of a file or of nothing, that can be read and written.
    ///
    /// # Errors
    /// What `mmap` says.
    pub(super) fn map(len: usize, file: Option<&FileOffset>) -> io::Result<Self> {
        let place = Self::reserve(len)?;
        let (flags, fd, offset) = match file {
            Some(file) => (libc::MAP_SHARED, file.file().as_raw_fd(), file.start()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: it takes the place of a reservation that is ours alone and that nobody has looked into.
        let mapped = unsafe {
            libc::mmap(
                place.start.as_ptr(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_NORESERVE | libc::MAP_FIXED,
                fd,
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(place)
    }

    /// Maps `len` bytes that can be read and nothing else: the first `size` of a file, and zeros behind it.
    ///
    /// # Errors
    /// What `mmap` says.
    pub(super) fn map_to_read(len: usize, file: &File, size: usize) -> io::Result<Self> {
        let place = Self::reserve(len)?;
        for (len, flags, fd) in [
            (len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            (size.min(len), libc::MAP_SHARED, file.as_raw_fd()),
        ] {
            let flags = flags | libc::MAP_NORESERVE | libc::MAP_FIXED;
            // SAFETY: it takes the place of a reservation that is ours alone and that nobody has looked into.
            let mapped =
                unsafe { libc::mmap(place.start.as_ptr(), len, libc::PROT_READ, flags, fd, 0) };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(place)
    }

    /// A range of that length to which nothing is mapped that could be touched.
    fn reserve(len: usize) -> io::Result<Self> {
        let larger = len
            .checked_add(HUGE)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a mapping where the kernel wants it harms nobody.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                larger,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let whole = match NonNull::new(mapped) {
            Some(start) if mapped != libc::MAP_FAILED => Self { start, len: larger },
            _ => return Err(io::Error::last_os_error()),
        };
        let before = whole.start.as_ptr().align_offset(HUGE);
        let (_, rest) = whole.split(before);
        let (place, _) = rest.split(len);
        Ok(place)
    }

    /// The first `len` bytes and the rest. Either may be empty.
    fn split(self, len: usize) -> (Self, Self) {
        let len = len.min(self.len);
        let second = Self {
            // SAFETY: at most the end of the range, which is no null pointer.
            start: unsafe { self.start.byte_add(len) },
            len: self.len - len,
        };
        let first = Self {
            start: self.start,
            len,
        };
        // They are in charge of its parts now.
        std::mem::forget(self);
        (first, second)
    }

    /// Where it begins.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// How long it is, in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is this one's alone, and who has used it is done: the region that holds it goes with it.
            unsafe { libc::munmap(self.start.as_ptr(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_where_a_huge_page_may_and_goes_when_it_is_dropped() {
        // Odd sizes have the kernel put the next mapping at an odd place.
        let places: Vec<_> = [4096, 12 << 10, 8 << 20, 20 << 10]
            .map(|len| Place::map(len, None).unwrap())
            .into();
        for place in &places {
            assert_eq!(place.start() as usize % HUGE, 0);
            // SAFETY: the place is mapped, and nobody else knows it.
            unsafe { place.start().write_volatile(1) };
        }
        let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let begins = format!("{:x}-", places[2].start() as usize);
        assert!(mapped().contains(&begins));
        drop(places);
        assert!(!mapped().contains(&begins));
    }

    #[test]
    fn more_than_there_are_addresses_is_an_error() {
        assert!(Place::map(usize::MAX, None).is_err());
        assert!(Place::map(1 << 60, None).is_err());
    }
}
