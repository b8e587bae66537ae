//! A kernel or an initramfs on its way into guest memory.
//!
//! What is large is copied from a mapping of the file, where it can be mapped, into huge pages, where the host gives them: a good part of a copy's cost is having
//! the pages that it goes to. If the file becomes shorter meanwhile, or its disk fails, that is a bus error rather than an error of `read`
//! (see [`crate::signals::end_at_bus_errors`]).
//!
//! Mapping the file in place of the memory would reach the guest's first instruction sooner still, and its init later by more than that: each page
//! would cost an exit when it is first touched, and another when it is first written (docs/performance.md). And whoever changes the
//! file would change a guest that runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Address as _, FileOffset, MmapRegion, ReadVolatile, VolatileMemory as _, VolatileMemoryError,
    VolatileSlice,
};

use super::huge_pages;
use crate::memory::GuestMemory;

/// What is shorter is no reason for a huge page, nor for a mapping.
const LARGE: usize = 256 << 10;

/// The file, and where it goes.
#[derive(Debug)]
pub(super) struct ImageFile<'a> {
    file: File,
    len: u64,
    /// Where it is read next.
    at: u64,
    /// All of it, once something large was wanted.
    mapping: Option<MmapRegion>,
    memory: &'a GuestMemory,
}

impl<'a> ImageFile<'a> {
    /// `file` from its beginning.
    ///
    /// # Errors
    /// When it has no end.
    pub fn new(mut file: File, memory: &'a GuestMemory) -> io::Result<Self> {
        let len = file.seek(SeekFrom::End(0))?;
        Ok(ImageFile {
            file,
            len,
            at: 0,
            mapping: None,
            memory,
        })
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What is read next, `len` bytes, in a mapping; `None` where there is none to be had, or that lies beyond the file's end.
    fn mapped(&mut self, len: usize) -> Option<VolatileSlice<'_>> {
        if self.mapping.is_none() {
            self.mapping = map(&self.file, self.len);
        }
        // usize: x86_64 only.
        self.mapping.as_ref()?.get_slice(self.at as usize, len).ok()
    }
}

/// The whole of a file of so many bytes, to be read from the beginning to the end.
fn map(file: &File, len: u64) -> Option<MmapRegion> {
    let file = FileOffset::new(file.try_clone().ok()?, 0);
    let mapping = MmapRegion::build(
        Some(file),
        usize::try_from(len).ok()?,
        libc::PROT_READ,
        libc::MAP_SHARED,
    )
    .ok()?;
    // SAFETY: the range is the mapping's own, and the advice changes nothing of what is in it.
    unsafe {
        libc::madvise(
            mapping.as_ptr().cast(),
            mapping.size(),
            libc::MADV_SEQUENTIAL,
        )
    };
    Some(mapping)
}

impl Read for ImageFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for ImageFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl ReadVolatile for ImageFile<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        target: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let len = target.len();
        if len >= LARGE {
            if let Some(start) =
                huge_pages::address_of(self.memory, target.ptr_guard_mut().as_ptr())
            {
                huge_pages::want(self.memory, start, start.unchecked_add(len as u64));
            }
            if let Some(source) = self.mapped(len) {
                source.copy_to_volatile_slice(target.offset(0)?);
                self.at = self.at.saturating_add(len as u64);
                return Ok(len);
            }
        }
        let from = SeekFrom::Start(self.at);
        self.file.seek(from).map_err(VolatileMemoryError::IOError)?;
        let count = self.file.read_volatile(target)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;

    /// A file of `len` bytes, each unlike its neighbours.
    fn file(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn small_and_large_parts_are_read_from_where_they_are() {
        let memory = crate::memory::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let (file, bytes) = file(3 * LARGE);
        let mut image = ImageFile::new(file, &memory).unwrap();
        for (at, len) in [(5000, LARGE + 3), (1, 100), (2 * LARGE, LARGE), (7, LARGE)] {
            image.seek(SeekFrom::Start(at as u64)).unwrap();
            let start = GuestAddress(1 << 20);
            memory
                .read_exact_volatile_from(start, &mut image, len)
                .unwrap();
            let mut copied = vec![0; len];
            memory.read_slice(&mut copied, start).unwrap();
            assert!(copied == bytes[at..at + len], "{len} bytes at {at}");
            assert_eq!(image.stream_position().unwrap(), (at + len) as u64);
        }
        assert_eq!(image.seek(SeekFrom::End(-2)).unwrap(), image.len() - 2);
        let mut rest = Vec::new();
        image.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, bytes[bytes.len() - 2..]);
        assert!(image.seek(SeekFrom::Current(-i64::MAX)).is_err());
    }

    #[test]
    fn what_lies_beyond_the_end_is_an_error() {
        let memory = crate::memory::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let (file, _) = file(2 * LARGE);
        let mut image = ImageFile::new(file, &memory).unwrap();
        for at in [LARGE as u64 + 1, 2 * LARGE as u64, u64::MAX - 3] {
            image.seek(SeekFrom::Start(at)).unwrap();
            let read = memory.read_exact_volatile_from(GuestAddress(0), &mut image, LARGE);
            assert!(read.is_err(), "at {at}");
        }
    }
}
