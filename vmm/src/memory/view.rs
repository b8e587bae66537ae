//! A second mapping of a memory file, parts of which can be touched and others not.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};

use vm_memory::FileOffset;

use super::checked;

/// The mapping. Nothing of it can be touched at first. This process's own code never does: it is for KVM and vhost, which take an address
/// and get an error where there is nothing to be touched.
#[derive(Debug)]
pub struct View {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it is a range of addresses that nobody here reads or writes through; the system calls on it may come from any thread.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Maps the first `len` bytes of `file`.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn new(file: &FileOffset, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let start = libc::off_t::try_from(file.start()).map_err(io::Error::other)?;
        // SAFETY: a mapping where the kernel wants it harms nobody, and the file is open.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.file().as_raw_fd(),
                start,
            )
        };
        let mapped = if mapped == libc::MAP_FAILED {
            None
        } else {
            NonNull::new(mapped)
        };
        let view = View {
            start: mapped.ok_or_else(io::Error::last_os_error)?,
            len,
        };
        // A VMM that crashes dumps what is its own.
        // SAFETY: the range is the mapping's, and the advice changes nothing of what is in it.
        let advised = unsafe { libc::madvise(view.start.as_ptr(), len, libc::MADV_DONTDUMP) };
        checked(advised).map(|()| view)
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Says how the `len` bytes from `offset` on may be touched, in `PROT_` bits.
    ///
    /// # Errors
    /// When they are not whole pages of the mapping; or what `mprotect` says.
    pub fn protect(&self, offset: u64, len: u64, how: libc::c_int) -> io::Result<()> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = usize::try_from(offset).map_err(|_| outside())?;
        let len = usize::try_from(len).map_err(|_| outside())?;
        let end = offset.checked_add(len).ok_or_else(outside)?;
        if end > self.len {
            return Err(outside());
        }
        let start = self.start.as_ptr().wrapping_byte_add(offset);
        // SAFETY: the range is within the mapping, which no code here reads or writes through.
        checked(unsafe { libc::mprotect(start, len, how) })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is this view's alone, and KVM has let go of it: the VM's memory outlives the VM.
        unsafe { libc::munmap(self.start.as_ptr(), self.len) };
    }
}
