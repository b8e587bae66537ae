//! What the driver of a balloon is told, and what it writes there: the feature bits and the configuration space (virtio 1.2, 5.5.3 and
//! 5.5.4).

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::devices::virtio::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, Interrupt};

/// VIRTIO_BALLOON_F_STATS_VQ: there is a queue for statistics of the guest.
pub const F_STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the driver takes pages back from the balloon before its guest runs out of memory.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_POISON: the driver says with what it fills free pages. Without this, Linux that fills them with zeros reports none.
const F_PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_PAGE_REPORTING: the driver reports free pages.
pub const F_PAGE_REPORTING: u64 = 1 << 5;

/// What is offered.
pub const FEATURES: u64 = F_STATS_VQ
    | F_DEFLATE_ON_OOM
    | F_PAGE_POISON
    | F_PAGE_REPORTING
    | F_RING_INDIRECT_DESC
    | F_RING_EVENT_IDX;

/// Five queues, though four are used: which number the queue for reports has is not what all drivers agree upon, see
/// [`Queues::of`](super::service::Queues::of). Linux reports up to 32 ranges at once, and wants room for them.
pub const QUEUE_SIZES: [u16; 5] = [64; 5];

/// The size of a page of the balloon's in bits, whatever the guest's and the host's is (5.5.6).
pub const PAGE_BITS: u32 = 12;

/// How large the balloon is to be. Clones speak of the same balloon, and work whether a driver is there or not.
#[derive(Clone, Debug, Default)]
pub struct Target(Arc<Space>);

/// struct virtio_balloon_config, and who is told when it changes.
#[derive(Debug, Default)]
struct Space {
    num_pages: AtomicU32,
    actual: AtomicU32,
    poison_val: AtomicU32,
    generation: AtomicU8,
    config_changed: Mutex<Interrupt>,
}

impl Target {
    /// The balloon is to have so many bytes: whole pages of 4 KiB, less than 16 TiB, the rest of it does not count. The driver takes its
    /// time, and takes no more than its guest can do without.
    pub fn set(&self, bytes: u64) {
        let pages = u32::try_from(bytes >> PAGE_BITS).unwrap_or(u32::MAX);
        if self.0.num_pages.swap(pages, Ordering::SeqCst) == pages {
            return;
        }
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.interrupt(|config_changed| config_changed.trigger());
    }

    /// How many bytes the balloon is to have.
    pub fn get(&self) -> u64 {
        u64::from(self.0.num_pages.load(Ordering::SeqCst)) << PAGE_BITS
    }

    /// The configuration space: num_pages, actual, free_page_hint_cmd_id, poison_val.
    pub(super) fn space(&self) -> Vec<u8> {
        let space = &self.0;
        [&space.num_pages, &space.actual]
            .map(|field| field.load(Ordering::SeqCst))
            .into_iter()
            .chain([0, space.poison_val.load(Ordering::SeqCst)])
            .flat_map(u32::to_le_bytes)
            .collect()
    }

    /// Which state of it that is.
    pub(super) fn generation(&self) -> u8 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// The driver writes to it. It has two fields to write; everything else is ignored.
    pub(super) fn write(&self, offset: usize, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            4 => self.0.actual.store(value, Ordering::SeqCst),
            12 => self.0.poison_val.store(value, Ordering::SeqCst),
            _ => {}
        }
    }

    /// Whether free pages must stay as they are, for a driver with these features: they hold something that is looked for when they are
    /// used again (5.5.6.7). What is given back would hold zeros.
    pub(super) fn keeps_free_pages(&self, features: u64) -> bool {
        features & F_PAGE_POISON != 0 && self.0.poison_val.load(Ordering::SeqCst) != 0
    }

    /// A driver is there, which wants to be told of changes.
    pub(super) fn connect(&self, config_changed: Interrupt) {
        self.interrupt(|place| *place = config_changed);
    }

    /// The driver is gone, and what it wrote is void.
    pub(super) fn disconnect(&self) {
        self.interrupt(|place| *place = Interrupt::none());
        self.0.actual.store(0, Ordering::SeqCst);
        self.0.poison_val.store(0, Ordering::SeqCst);
    }

    fn interrupt(&self, with: impl FnOnce(&mut Interrupt)) {
        // There is no state in between that a panic could have left.
        let lock = self.0.config_changed.lock();
        with(&mut lock.unwrap_or_else(PoisonError::into_inner));
    }
}
