//! A kernel or an initramfs on its way into guest memory.
//!
//! It is copied, into huge pages where the host gives them: a good part of a copy's cost is having the pages that it goes to.
//!
//! Mapping the file in place of the memory would reach the guest's first instruction sooner still, and its init later by more than that: each page
//! would cost an exit when it is first touched, and another when it is first written (docs/performance.md). And whoever changes the
//! file would change a guest that runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Address as _, ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::huge_pages;
use crate::memory::GuestMemory;

/// What is shorter is no reason for a huge page.
const WORTH_ONE: usize = 256 << 10;

/// The file, and where it goes.
#[derive(Debug)]
pub(super) struct ImageFile<'a> {
    pub file: File,
    pub memory: &'a GuestMemory,
}

impl Read for ImageFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for ImageFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl ReadVolatile for ImageFile<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        target: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let start = huge_pages::address_of(self.memory, target.ptr_guard_mut().as_ptr());
        if let Some(start) = start
            && target.len() >= WORTH_ONE
        {
            huge_pages::want(self.memory, start, start.unchecked_add(target.len() as u64));
        }
        self.file.read_volatile(target)
    }
}
