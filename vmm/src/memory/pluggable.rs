//! Memory that a guest has a part of at a time: a region of blocks, each of which is plugged or not.
//!
//! All of the region is mapped for as long as the VM lives, which costs address space alone, and in one memory file, so that there are two
//! views of it. The guest, and vhost on its behalf, reach it through one in which what is not plugged cannot be touched: to try is an error
//! of the guest's, not memory that it should not have. The devices here reach it through the other, and are told what is plugged when they
//! ask for a slice: a block that a guest unplugs in the middle of its own request is written to no avail, and harms nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::give_back::punch;
use super::region::Region;
use super::view::View;
use super::{Error, memory_file};

/// The smallest block: a large page of the host's.
const BLOCK_MIN: u64 = 2 << 20;
/// As many blocks as a region may have: each that differs from the one before costs the host a mapping, of which it allows 65530.
const BLOCKS_MAX: u64 = 16 * 1024;

/// Which of a region's blocks the guest has. One thread at a time changes them, that of the device they come by.
#[derive(Debug)]
pub struct Blocks {
    plugged: Box<[AtomicBool]>,
    bytes: AtomicU64,
    size: u64,
    view: View,
    file: FileOffset,
}

/// What a range of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The guest has all of it.
    Plugged,
    /// The guest has nothing of it.
    Unplugged,
    /// Some of it.
    Mixed,
}

/// That is not a range of whole blocks of the region.
#[derive(Debug, thiserror::Error)]
#[error("{count} blocks from {start:#x} on are not in the region")]
pub struct Outside {
    start: u64,
    count: u64,
}

/// The size of the blocks of a region of `len` bytes.
pub fn block_size(len: u64) -> u64 {
    let least = len.div_ceil(BLOCKS_MAX);
    least.next_power_of_two().max(BLOCK_MIN)
}

/// A region of `len` bytes from `start` on, with nothing plugged. `len` counts whole blocks of [`block_size`].
///
/// # Errors
/// When the host does not give the address space.
pub fn region(start: GuestAddress, len: u64) -> Result<Region, Error> {
    let failed = |source| Error::File { size: len, source };
    let file = FileOffset::from_arc(Arc::new(memory_file(len)?), 0);
    let view = View::new(&file, len).map_err(failed)?;
    let size = block_size(len);
    let count = usize::try_from(len / size).map_err(|e| failed(io::Error::other(e)))?;
    let length = usize::try_from(len).map_err(|e| failed(io::Error::other(e)))?;
    let mapping = GuestRegionMmap::from_range(start, length, Some(file.clone()));
    let mapping = mapping.map_err(|source| Error::Map { size: len, source })?;
    let blocks = Blocks {
        plugged: (0..count).map(|_| AtomicBool::new(false)).collect(),
        bytes: AtomicU64::new(0),
        size,
        view,
        file,
    };
    Ok(Region::pluggable(mapping, blocks))
}

impl Blocks {
    /// The size of each in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes the guest has.
    pub fn plugged(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Where the guest's accesses go.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Whether the guest has all of the `len` bytes from `offset` on.
    pub(super) fn has(&self, offset: u64, len: u64) -> bool {
        let Some(last) = offset.checked_add(len.saturating_sub(1)) else {
            return false;
        };
        let Ok(first) = usize::try_from(offset / self.size) else {
            return false;
        };
        let Ok(last) = usize::try_from(last / self.size) else {
            return false;
        };
        let blocks = self.plugged.get(first..=last);
        blocks.is_some_and(|blocks| blocks.iter().all(|block| block.load(Ordering::Acquire)))
    }

    /// What `count` blocks from `offset` on are.
    ///
    /// # Errors
    /// When they are not in the region, or `offset` is not the beginning of a block.
    pub fn state(&self, offset: u64, count: u64) -> Result<State, Outside> {
        let blocks = self.range(offset, count)?;
        let plugged = blocks.iter().filter(|block| block.load(Ordering::Acquire));
        Ok(match plugged.count() {
            0 => State::Unplugged,
            all if all == blocks.len() => State::Plugged,
            _ => State::Mixed,
        })
    }

    /// Gives the guest `count` blocks from `offset` on, which it does not have.
    ///
    /// # Errors
    /// When the host does not let them be touched; nothing has changed then.
    pub fn plug(&self, offset: u64, count: u64) -> io::Result<()> {
        let blocks = self.range(offset, count).map_err(io::Error::other)?;
        let len = count.saturating_mul(self.size);
        self.view
            .protect(offset, len, libc::PROT_READ | libc::PROT_WRITE)?;
        self.bytes.fetch_add(len, Ordering::SeqCst);
        mark(blocks, true);
        Ok(())
    }

    /// Takes `count` blocks from `offset` on back from the guest, which has them all, and gives them to the host.
    ///
    /// # Errors
    /// When the host does not take them. The guest does not have them then, all the same.
    pub fn unplug(&self, offset: u64, count: u64) -> io::Result<()> {
        let blocks = self.range(offset, count).map_err(io::Error::other)?;
        let len = count.saturating_mul(self.size);
        mark(blocks, false);
        self.bytes.fetch_sub(len, Ordering::SeqCst);
        self.view.protect(offset, len, libc::PROT_NONE)?;
        punch(&self.file, offset, len)
    }

    /// Takes back all that the guest has.
    ///
    /// # Errors
    /// As [`unplug`](Self::unplug).
    pub fn unplug_all(&self) -> io::Result<()> {
        let len = self.size.saturating_mul(self.plugged.len() as u64);
        mark(&self.plugged, false);
        self.bytes.store(0, Ordering::SeqCst);
        self.view.protect(0, len, libc::PROT_NONE)?;
        punch(&self.file, 0, len)
    }

    fn range(&self, offset: u64, count: u64) -> Result<&[AtomicBool], Outside> {
        let outside = || Outside {
            start: offset,
            count,
        };
        if count == 0 || !offset.is_multiple_of(self.size) {
            return Err(outside());
        }
        let first = usize::try_from(offset / self.size).map_err(|_| outside())?;
        let count = usize::try_from(count).map_err(|_| outside())?;
        let end = first.checked_add(count).ok_or_else(outside)?;
        self.plugged.get(first..end).ok_or_else(outside)
    }
}

fn mark(blocks: &[AtomicBool], plugged: bool) {
    for block in blocks {
        block.store(plugged, Ordering::Release);
    }
}
