//! Memory that a guest has a part of at a time: a region of blocks, each of which is plugged or not.
//!
//! All of the region is mapped for as long as the VM lives, which costs address space alone, and in one memory file, so that there are two
//! views of it. The guest, and vhost on its behalf, reach it through one in which what is not plugged cannot be touched: to try is an error
//! of the guest's, not memory that it should not have. The devices here reach it through the other, and are told what is plugged when they
//! ask for a slice: a block that a guest unplugs in the middle of its own request is written to no avail, and harms nobody.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{FileOffset, GuestAddress};

use super::dma::Dma;
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
    reach: Mutex<Option<Reach>>,
}

/// Devices of the host's that reach what is plugged, each block by a mapping of its own.
#[derive(Debug)]
struct Reach {
    dma: Arc<dyn Dma>,
    /// Where the region begins for the guest, and in this process.
    start: u64,
    host: u64,
}

impl Reach {
    /// Lets devices reach a block.
    fn map(&self, offset: u64, size: u64) -> io::Result<()> {
        let (at, host) = (self.start + offset, self.host + offset);
        // SAFETY: all of the region is mapped as long as it is there, and whoever connects devices to it keeps it until they are
        // disconnected. It is guest memory, which nobody believes to be unchanging.
        unsafe { self.dma.map(at, host, size) }
    }

    /// Takes that back.
    fn unmap(&self, offset: u64, size: u64) -> io::Result<()> {
        self.dma.unmap(self.start + offset, size)
    }
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
    let region = Region::map(start, length, Some(file.clone()));
    let region = region.map_err(|source| Error::Map { size: len, source })?;
    let blocks = Blocks {
        plugged: (0..count).map(|_| AtomicBool::new(false)).collect(),
        bytes: AtomicU64::new(0),
        size,
        view,
        file,
        reach: Mutex::default(),
    };
    Ok(region.with(blocks))
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
    /// When the host does not let them be touched, or be reached by devices; nothing has changed then.
    pub fn plug(&self, offset: u64, count: u64) -> io::Result<()> {
        let blocks = self.range(offset, count).map_err(io::Error::other)?;
        let len = count.saturating_mul(self.size);
        let reach = self.reach();
        if let Some(reach) = &*reach {
            self.let_reach(reach, self.offsets(offset, count))?;
        }
        let how = libc::PROT_READ | libc::PROT_WRITE;
        if let Err(error) = self.view.protect(offset, len, how) {
            self.let_go(reach.as_ref(), self.offsets(offset, count))?;
            return Err(error);
        }
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
        let reach = self.reach();
        mark(blocks, false);
        self.bytes.fetch_sub(len, Ordering::SeqCst);
        self.view.protect(offset, len, libc::PROT_NONE)?;
        self.let_go(reach.as_ref(), self.offsets(offset, count))?;
        punch(&self.file, offset, len)
    }

    /// Takes back all that the guest has.
    ///
    /// # Errors
    /// As [`unplug`](Self::unplug).
    pub fn unplug_all(&self) -> io::Result<()> {
        let len = self.size.saturating_mul(self.plugged.len() as u64);
        let reach = self.reach();
        let plugged: Vec<_> = self.plugged_offsets().collect();
        mark(&self.plugged, false);
        self.bytes.store(0, Ordering::SeqCst);
        self.view.protect(0, len, libc::PROT_NONE)?;
        self.let_go(reach.as_ref(), plugged)?;
        punch(&self.file, 0, len)
    }

    /// Lets devices reach what is plugged, now and later: the region begins at `start` for the guest, and at `host` in this process.
    ///
    /// # Errors
    /// When others do already, or the host does not let all of it be reached; then they reach nothing of it.
    pub(super) fn connect(&self, start: u64, host: u64, dma: Arc<dyn Dma>) -> io::Result<()> {
        let mut reach = self.reach();
        if reach.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let new = Reach { dma, start, host };
        self.let_reach(&new, self.plugged_offsets())?;
        *reach = Some(new);
        Ok(())
    }

    /// Ends that.
    ///
    /// # Errors
    /// When the host keeps some of it.
    pub(super) fn disconnect(&self) -> io::Result<()> {
        let reach = self.reach().take();
        self.let_go(reach.as_ref(), self.plugged_offsets())
    }

    /// All of these blocks, or none of them.
    fn let_reach(&self, reach: &Reach, offsets: impl IntoIterator<Item = u64>) -> io::Result<()> {
        let mut done = Vec::new();
        for offset in offsets {
            if let Err(error) = reach.map(offset, self.size) {
                self.let_go(Some(reach), done)?;
                return Err(error);
            }
            done.push(offset);
        }
        Ok(())
    }

    /// All of these blocks, and the first error.
    fn let_go(
        &self,
        reach: Option<&Reach>,
        offsets: impl IntoIterator<Item = u64>,
    ) -> io::Result<()> {
        let Some(reach) = reach else {
            return Ok(());
        };
        let gone = offsets
            .into_iter()
            .map(|offset| reach.unmap(offset, self.size));
        gone.fold(Ok(()), io::Result::and)
    }

    /// Where the blocks of a range begin.
    fn offsets(&self, offset: u64, count: u64) -> impl Iterator<Item = u64> {
        let size = self.size;
        (0..count).map(move |index| offset + index * size)
    }

    /// Where those blocks begin that the guest has.
    fn plugged_offsets(&self) -> impl Iterator<Item = u64> {
        let blocks = (0u64..).zip(&self.plugged);
        let plugged = blocks.filter(|(_, block)| block.load(Ordering::Acquire));
        plugged.map(|(index, _)| index * self.size)
    }

    fn reach(&self) -> MutexGuard<'_, Option<Reach>> {
        // It is whole at any time.
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
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
