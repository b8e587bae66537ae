//! A kernel or an initramfs on its way into guest memory.
//!
//! It is copied, into huge pages where the host gives them: a good part of a copy's cost is having the pages that it goes to. All of them
//! are written, so no memory is taken that would not be taken anyway.
//!
//! Mapping the file in place of the memory would reach the guest's first instruction sooner still, and its init later by more than that: each page
//! would cost an exit when it is first touched, and another when it is first written (docs/performance.md). And whoever changes the
//! file would change a guest that runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// The size of a huge page.
const HUGE: usize = 2 << 20;

/// The file.
#[derive(Debug)]
pub(super) struct ImageFile(pub(super) File);

impl Read for ImageFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for ImageFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl ReadVolatile for ImageFile {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        target: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        want_huge_pages(target);
        self.0.read_volatile(target)
    }
}

/// Asks for huge pages where they fit wholly into `target`. A host that has none to give is as good, but slower.
fn want_huge_pages<B: BitmapSlice>(target: &VolatileSlice<B>) {
    let guard = target.ptr_guard_mut();
    let (start, end) = (
        guard.as_ptr() as usize,
        guard.as_ptr() as usize + guard.len(),
    );
    let (start, end) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
    if start < end {
        // SAFETY: the range lies within `target`, and the advice changes nothing of what is in it.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}
