//! How much the guest is to have of the region, and has; and the configuration space that tells the driver so (virtio 1.2, 5.15.4).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use vm_memory::{Address as _, GuestMemoryRegion as _};

use crate::devices::virtio::Interrupt;
use crate::memory::Region;
use crate::memory::pluggable::Blocks;

/// How much of a region the guest is to have. Clones speak of the same one, and work whether a driver is there or not.
#[derive(Clone, Debug)]
pub struct Target(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    region: Arc<Region>,
    requested: AtomicU64,
    generation: AtomicU8,
    config_changed: Mutex<Interrupt>,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
}

/// Hears when the guest has as much as it is to have; or, by the other end's going away, that it is to have something else now.
pub type Reached = oneshot::Receiver<()>;

/// A size that a region cannot have plugged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSo {
    /// There is no more than that.
    #[error("there are {most} bytes to be had at most")]
    TooMuch {
        /// The region's size.
        most: u64,
    },
    /// Part of a block.
    #[error("memory comes and goes by {block} bytes")]
    PartOfBlock {
        /// A block's size.
        block: u64,
    },
}

impl Target {
    pub(super) fn new(region: Arc<Region>, requested: u64) -> Option<Self> {
        region.blocks()?;
        Some(Target(Arc::new(Inner {
            region,
            requested: AtomicU64::new(requested),
            generation: AtomicU8::new(0),
            config_changed: Mutex::default(),
            waiting: Mutex::default(),
        })))
    }

    /// The guest is to have so many bytes. It takes its time, and may not be able to give up all that it is to give.
    ///
    /// # Errors
    /// [`NotSo`] when that is more than the region has, or part of a block.
    pub fn set(&self, bytes: u64) -> Result<Reached, NotSo> {
        self.check(bytes)?;
        let (tell, reached) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if self.0.requested.swap(bytes, Ordering::SeqCst) != bytes {
                waiting.clear();
            }
            // Those that have given up wait no more.
            waiting.retain(|tell| !tell.is_closed());
            waiting.push(tell);
        }
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.interrupt(|config_changed| config_changed.trigger());
        self.changed();
        Ok(reached)
    }

    /// Whether the guest can have so many bytes.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn check(&self, bytes: u64) -> Result<(), NotSo> {
        let (most, block) = (self.most(), self.block());
        if bytes > most {
            return Err(NotSo::TooMuch { most });
        }
        if !bytes.is_multiple_of(block) {
            return Err(NotSo::PartOfBlock { block });
        }
        Ok(())
    }

    /// How many bytes the guest is to have.
    pub fn requested(&self) -> u64 {
        self.0.requested.load(Ordering::SeqCst)
    }

    /// How many it has.
    pub fn plugged(&self) -> u64 {
        self.blocks().map_or(0, Blocks::plugged)
    }

    /// How many it can have.
    pub fn most(&self) -> u64 {
        self.0.region.len()
    }

    fn block(&self) -> u64 {
        // There always are blocks: see `new`.
        self.blocks().map_or(1, Blocks::size)
    }

    pub(super) fn blocks(&self) -> Option<&Blocks> {
        self.0.region.blocks()
    }

    /// Where in the region a guest's address is.
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.0.region.start_addr().raw_value())
    }

    /// The guest has more or less than it had.
    pub(super) fn changed(&self) {
        let mut waiting = self.waiting();
        if self.plugged() == self.requested() {
            for tell in waiting.drain(..) {
                // One that has gone does not hear it.
                let _ = tell.send(());
            }
        }
    }

    /// struct virtio_mem_config: block_size, node_id (none, and padding), addr, region_size, usable_region_size, plugged_size,
    /// requested_size. All of the region is usable.
    pub(super) fn space(&self) -> Vec<u8> {
        let start = self.0.region.start_addr().raw_value();
        [
            self.block(),
            0,
            start,
            self.most(),
            self.most(),
            self.plugged(),
            self.requested(),
        ]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect()
    }

    /// Which state of it that is.
    pub(super) fn generation(&self) -> u8 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// A driver is there, which wants to be told of changes.
    pub(super) fn connect(&self, config_changed: Interrupt) {
        self.interrupt(|place| *place = config_changed);
    }

    /// The driver is gone.
    pub(super) fn disconnect(&self) {
        self.interrupt(|place| *place = Interrupt::none());
    }

    fn interrupt(&self, with: impl FnOnce(&mut Interrupt)) {
        // There is no state in between that a panic could have left; so of those who wait.
        let lock = self.0.config_changed.lock();
        with(&mut lock.unwrap_or_else(PoisonError::into_inner));
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        let lock = self.0.waiting.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}
