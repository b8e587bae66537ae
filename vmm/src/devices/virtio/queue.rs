//! The split virtqueue (virtio 1.2, 2.7), as a guest that means harm would use it.
//!
//! The ring arithmetic is rust-vmm's `virtio-queue`. What is here around it are the checks which that crate leaves to its user:
//! a chain that is cut short by a bad descriptor is an error rather than a shorter chain, every buffer lies in RAM before anyone
//! sees it, and a head that is in flight is not taken twice.

mod chain;
mod window;

use std::sync::atomic::{Ordering, fence};

pub use chain::{Chain, Segment};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue as Rings, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::GuestMemory;

/// Where the ring begins in the driver area and in the device area, behind flags and idx (virtio 1.2, 2.7.6, 2.7.8).
const RING_OFFSET: u64 = 4;
/// Where a ring's idx is.
const INDEX_OFFSET: u64 = 2;
/// The size of an element of the used ring: the head, and how much was written (virtio 1.2, 2.7.8).
const USED_SIZE: u64 = 8;

/// What the guest got wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue as a whole is unusable: not ready, or a ring that is not in RAM.
    #[error("a ring is not in guest memory, or its size is wrong")]
    Invalid,
    /// The rings contradict themselves, or could not be reached.
    #[error("the rings are broken")]
    Rings(#[source] virtio_queue::Error),
    /// The driver's index is further ahead than the queue is long.
    #[error("{waiting} heads are said to be available in a queue of {size}")]
    Ahead {
        /// How far.
        waiting: u16,
        /// The queue's length.
        size: u16,
    },
    /// An index beyond the table that it points into.
    #[error("descriptor {index} does not exist: the table has {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// The table's length.
        size: u16,
    },
    /// More descriptors than the queue is long, which also ends every cycle (virtio 1.2, 2.7.5.2).
    #[error("a chain is longer than its queue, {0}")]
    TooLong(u16),
    /// A buffer without bytes.
    #[error("a buffer of size zero")]
    ZeroLength,
    /// A buffer that is not, or not wholly, in RAM.
    #[error("a buffer of {len} bytes at {addr:#x} is not in guest memory")]
    OutsideMemory {
        /// Where it begins.
        addr: u64,
        /// How long it is.
        len: u32,
    },
    /// Buffers that sum up to more than a used length can say.
    #[error("a chain of more than 4 GiB")]
    TooBig,
    /// A device-readable buffer behind a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("a readable buffer behind a writable one")]
    Order,
    /// A table of its own that is within another, continues, is empty or of odd size (virtio 1.2, 2.7.5.3.1).
    #[error("a bad indirect table")]
    Indirect,
    /// A head that the device has not given back yet.
    #[error("head {0} is made available twice")]
    InFlight(u16),
    /// A head given back that was never taken: the device's own fault.
    #[error("head {0} is completed but not in flight")]
    NotInFlight(u16),
    /// Guest memory could not be reached.
    #[error("guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// The chain is shorter than what the device must read from it, or write to it.
    #[error("a chain has {have} bytes where {need} are needed")]
    Short {
        /// What it must have.
        need: usize,
        /// What it has.
        have: usize,
    },
}

/// Where the driver put a queue, and how large it made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The number of descriptors: a power of two.
    pub size: u16,
    /// The descriptor table, aligned to 16.
    pub descriptors: GuestAddress,
    /// The driver area (the available ring), aligned to 2.
    pub driver: GuestAddress,
    /// The device area (the used ring), aligned to 4.
    pub device: GuestAddress,
}

/// A split virtqueue in the hands of a device.
#[derive(Debug)]
pub struct Queue {
    rings: Rings,
    layout: Layout,
    in_flight: Bits,
    /// How far the used ring was when it was last asked whether the driver wants an interrupt.
    told: u16,
}

impl Queue {
    /// Takes over the queue that the driver has laid out, for a device whose queue may be `max_size` long.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size that is no power of two up to `max_size`, a misaligned ring, or one outside of RAM.
    pub fn new(
        max_size: u16,
        layout: Layout,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Self, Error> {
        let mut rings = Rings::new(max_size).map_err(Error::Rings)?;
        rings
            .try_set_size(layout.size)
            .map_err(|_| Error::Invalid)?;
        rings
            .try_set_desc_table_address(layout.descriptors)
            .map_err(|_| Error::Invalid)?;
        rings
            .try_set_avail_ring_address(layout.driver)
            .map_err(|_| Error::Invalid)?;
        rings
            .try_set_used_ring_address(layout.device)
            .map_err(|_| Error::Invalid)?;
        rings.set_event_idx(event_idx);
        rings.set_ready(true);
        if !rings.is_valid(memory) {
            return Err(Error::Invalid);
        }
        Ok(Queue {
            rings,
            layout,
            in_flight: Bits::new(layout.size),
            told: 0,
        })
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Where it lies.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many chains the driver has made available that were not taken.
    ///
    /// # Errors
    /// [`Error::Ahead`] when there are more than the queue holds; or the ring could not be reached.
    pub fn waiting(&self, memory: &GuestMemory) -> Result<u16, Error> {
        let available = self.rings.avail_idx(memory, Ordering::Acquire);
        let available = available.map_err(Error::Rings)?.0;
        let waiting = available.wrapping_sub(self.rings.next_avail());
        let size = self.layout.size;
        if waiting > size {
            return Err(Error::Ahead { waiting, size });
        }
        Ok(waiting)
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    /// When the rings or the chain are malformed. The queue is then of no further use.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Error> {
        let next = self.rings.next_avail();
        if self.waiting(memory)? == 0 {
            return Ok(None);
        }
        let slot = u64::from(next % self.layout.size);
        let entry = place(self.layout.driver, RING_OFFSET + 2 * slot)?;
        let head = u16::from_le(memory.read_obj(entry).map_err(Error::Memory)?);
        if head >= self.layout.size {
            return Err(Error::DescriptorIndex {
                index: head,
                size: self.layout.size,
            });
        }
        if !self.in_flight.set(head) {
            return Err(Error::InFlight(head));
        }
        let chain = Chain::walk(memory, self.layout, head)?;
        self.rings.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// Gives a chain back to the driver, with the number of bytes that were written to it.
    ///
    /// # Errors
    /// [`Error::NotInFlight`] for a head that was not taken; or the used ring could not be reached.
    pub fn complete(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), Error> {
        self.complete_together(memory, &[(head, written)])
    }

    /// Gives chains back to the driver that mean something only together, each a head with the number of bytes that were written:
    /// the driver sees all of them or none, for the ring's index moves once.
    ///
    /// # Errors
    /// As of [`Queue::complete`].
    pub fn complete_together(
        &mut self,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), Error> {
        let mut index = self.rings.next_used();
        for (head, written) in chains {
            if !self.in_flight.clear(*head) {
                return Err(Error::NotInFlight(*head));
            }
            let slot = u64::from(index % self.layout.size);
            let element = [u32::from(*head).to_le(), written.to_le()];
            memory
                .write_obj(
                    element,
                    place(self.layout.device, RING_OFFSET + USED_SIZE * slot)?,
                )
                .map_err(Error::Memory)?;
            index = index.wrapping_add(1);
        }
        self.rings.set_next_used(index);
        memory
            .store(
                index.to_le(),
                place(self.layout.device, INDEX_OFFSET)?,
                Ordering::Release,
            )
            .map_err(Error::Memory)
    }

    /// Goes on where somebody else has stopped who worked on the queue until now and gave chains back in their order: with the first one
    /// that was not given back.
    ///
    /// # Errors
    /// When the used ring cannot be reached.
    pub fn resume(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        let index: u16 = memory
            .load(place(self.layout.device, INDEX_OFFSET)?, Ordering::Acquire)
            .map_err(Error::Memory)?;
        self.told = u16::from_le(index);
        self.rings.set_next_used(self.told);
        self.rings.set_next_avail(self.told);
        self.in_flight = Bits::new(self.layout.size);
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was completed since the last call, if anything was.
    ///
    /// # Errors
    /// When the rings cannot be reached.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        // What was completed must be there for a driver that looks once more before it sleeps, before we look at what it wants.
        fence(Ordering::SeqCst);
        let index = self.rings.next_used();
        let told = std::mem::replace(&mut self.told, index);
        if index == told {
            return Ok(false);
        }
        let read = |place| -> Result<u16, Error> {
            let word: u16 = memory
                .load(place, Ordering::Relaxed)
                .map_err(Error::Memory)?;
            Ok(u16::from_le(word))
        };
        if self.rings.event_idx_enabled() {
            // It wants one when the index passes what it wrote behind its ring (2.7.7.2, 2.7.10).
            let size = u64::from(self.layout.size);
            let event = read(place(self.layout.driver, RING_OFFSET + 2 * size)?)?;
            return Ok(index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(told));
        }
        // Without event-idx the driver has a flag (2.7.7.2).
        let flags = read(self.layout.driver)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to kick.
    ///
    /// # Errors
    /// When the rings cannot be reached.
    pub fn disable_kicks(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.rings
            .disable_notification(memory)
            .map_err(Error::Rings)
    }

    /// Asks the driver to kick for what it makes available next. `true`: something became available meanwhile, which no kick
    /// will announce.
    ///
    /// # Errors
    /// When the rings cannot be reached.
    pub fn enable_kicks(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        self.rings.enable_notification(memory).map_err(Error::Rings)
    }
}

/// What is `offset` bytes behind `start`.
fn place(start: GuestAddress, offset: u64) -> Result<GuestAddress, Error> {
    start.checked_add(offset).ok_or(Error::Invalid)
}

/// Which heads are in flight.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(size: u16) -> Self {
        Bits(vec![0; usize::from(size).div_ceil(64)])
    }

    /// Sets a bit; `false` if it was set.
    fn set(&mut self, bit: u16) -> bool {
        let mask = 1 << (bit % 64);
        match self.0.get_mut(usize::from(bit / 64)) {
            Some(word) if *word & mask == 0 => {
                *word |= mask;
                true
            }
            _ => false,
        }
    }

    /// Clears a bit; `false` if it was clear.
    fn clear(&mut self, bit: u16) -> bool {
        let mask = 1 << (bit % 64);
        match self.0.get_mut(usize::from(bit / 64)) {
            Some(word) if *word & mask != 0 => {
                *word &= !mask;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
