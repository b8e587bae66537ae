//! A file in the guest's address space that it reads and cannot write: what Linux takes for persistent memory.
//!
//! Its pages are those of the host's page cache, so all VMs with the same file have them once, and no guest's RAM has any. The guest can map and
//! execute them where they lie (DAX). Linux wants such memory in whole huge pages of 2 MiB, so that zeros follow the file up to there.
//!
//! KVM hands a guest's writes to the VMM, where nothing answers at these addresses, so they come to nothing. No device reaches the file either: it is not in
//! [`GuestMemory`](super::GuestMemory).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::place::{HUGE, Place};
use crate::arch::x86_64::layout;
use crate::config::HostFile;

/// Why a file cannot be persistent memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or mapped.
    #[error("cannot map {path} for --pmem")]
    Map {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is none that could be mapped, or has nothing in it.
    #[error("{path} is no regular file with something in it; pass a file system's image to --pmem")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// It is too large.
    #[error(
        "{path} has {size} bytes, and --pmem takes at most {most}; a larger file can be a --disk with readonly",
        most = layout::ROM_SIZE
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// KVM did not take it.
    #[error("KVM did not take the file of --pmem")]
    Kvm(#[source] kvm_ioctls::Error),
}

/// A file, mapped. It goes when this is dropped, which must not be before the VM's end.
#[derive(Debug)]
pub struct Rom {
    place: Place,
}

impl Rom {
    /// Maps the file. No page of it is touched.
    ///
    /// # Errors
    /// When it is not one that can be mapped, or is larger than there is room for.
    pub fn map(file: &HostFile) -> Result<Self, Error> {
        let path = file.name();
        let failed = |source| Error::Map {
            path: path.clone(),
            source,
        };
        let file: File = file.open().map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        let size = data.len();
        if !data.is_file() || size == 0 {
            return Err(Error::Kind { path });
        }
        if size > layout::ROM_SIZE {
            return Err(Error::Size { path, size });
        }
        let size = usize::try_from(size).map_err(|e| failed(io::Error::other(e)))?;
        let place = Place::map_to_read(size.next_multiple_of(HUGE), &file, size).map_err(failed)?;
        Ok(Rom { place })
    }

    /// Where the guest finds it.
    pub fn range(&self) -> Range<u64> {
        layout::ROM_START..layout::ROM_START.saturating_add(self.place.len() as u64)
    }

    /// Makes it known to KVM by this number.
    ///
    /// # Errors
    /// What KVM says.
    pub fn register(&self, vm: &VmFd, slot: u32) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::ROM_START,
            memory_size: self.place.len() as u64,
            userspace_addr: self.place.start() as u64,
        };
        // SAFETY: the range is mapped for as long as this lives, which the VM's owner keeps beside it.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::Kvm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, HostFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, content).unwrap();
        (directory, path.into())
    }

    #[test]
    fn a_file_is_there_with_zeros_behind_it() {
        let (_directory, image) = file(&[7; 5000]);
        let rom = Rom::map(&image).unwrap();
        assert_eq!(
            rom.range(),
            layout::ROM_START..layout::ROM_START + (2 << 20)
        );
        // SAFETY: it is mapped, and nobody writes to it.
        let bytes = unsafe { std::slice::from_raw_parts(rom.place.start(), rom.place.len()) };
        assert!(bytes[..5000].iter().all(|byte| *byte == 7));
        assert!(bytes[5000..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_no_such_file_is_refused_by_name() {
        let refused = |file: HostFile| Rom::map(&file).unwrap_err().to_string();
        let (directory, empty) = file(b"");
        assert!(refused(empty).contains("no regular file with something in it"));
        let here = directory.path().to_owned();
        assert!(refused(here.clone().into()).contains("cannot map"));
        assert!(refused(PathBuf::from("/dev/null").into()).contains("/dev/null is no regular"));
        assert_eq!(
            refused(here.join("absent").into()),
            format!("cannot map {} for --pmem", here.join("absent").display())
        );
        let large = here.join("large");
        File::create(&large)
            .unwrap()
            .set_len(layout::ROM_SIZE + 1)
            .unwrap();
        assert!(refused(large.into()).contains("at most"));
    }
}
