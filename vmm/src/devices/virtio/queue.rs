//! The split virtqueue (virtio 1.2, 2.7), as a guest that means harm would use it.
//!
//! The ring arithmetic is rust-vmm's `virtio-queue`. What is here around it are the checks which that crate leaves to its user:
//! a chain that is cut short by a bad descriptor is an error rather than a shorter chain, every buffer lies in RAM before anyone
//! sees it, and a head that is in flight is not taken twice.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue as Rings, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use super::GuestMemory;

/// A descriptor's size in bytes (virtio 1.2, 2.7.5).
const DESCRIPTOR_SIZE: u64 = 16;
/// Where the ring of heads begins in the driver area, behind flags and idx.
const AVAIL_RING_OFFSET: u64 = 4;

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

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    /// When the rings or the chain are malformed. The queue is then of no further use.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Error> {
        let next = self.rings.next_avail();
        let available = self
            .rings
            .avail_idx(memory, Ordering::Acquire)
            .map_err(Error::Rings)?
            .0;
        let waiting = available.wrapping_sub(next);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.layout.size {
            return Err(Error::Ahead {
                waiting,
                size: self.layout.size,
            });
        }
        let slot = u64::from(next % self.layout.size);
        let entry = self
            .layout
            .driver
            .checked_add(AVAIL_RING_OFFSET + 2 * slot)
            .ok_or(Error::Invalid)?;
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
        if !self.in_flight.clear(head) {
            return Err(Error::NotInFlight(head));
        }
        self.rings
            .add_used(memory, head, written)
            .map_err(Error::Rings)
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    ///
    /// # Errors
    /// When the rings cannot be reached.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        self.rings.needs_notification(memory).map_err(Error::Rings)
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

/// A buffer in guest memory. Its whole range was seen to lie in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub addr: GuestAddress,
    /// How long it is; never zero.
    pub len: u32,
}

/// The buffers of one request: first what the device may read, then what it may write (virtio 1.2, 2.7.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    /// The index that names the chain until it is completed.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read, in order.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// The number of bytes that the device may read.
    pub fn readable_len(&self) -> usize {
        total(&self.readable)
    }

    /// The number of bytes that the device may write.
    pub fn writable_len(&self) -> usize {
        total(&self.writable)
    }

    /// Reads all of `buf` from the readable bytes, beginning at their byte `offset`.
    ///
    /// The guest may change its memory at any time: read what is decided upon once, and decide on the copy.
    ///
    /// # Errors
    /// [`Error::Short`] when the chain has not enough.
    pub fn read_at(
        &self,
        memory: &GuestMemory,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        let mut done = 0;
        for slice in slices(memory, &self.readable, offset, buf.len())? {
            let Some(rest) = buf.get_mut(done..) else {
                break;
            };
            done += slice.copy_to(rest);
        }
        enough(done, buf.len(), offset)
    }

    /// Writes all of `data` to the writable bytes, beginning at their byte `offset`.
    ///
    /// # Errors
    /// [`Error::Short`] when the chain has not enough room.
    pub fn write_at(&self, memory: &GuestMemory, offset: usize, data: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        for slice in slices(memory, &self.writable, offset, data.len())? {
            let Some(rest) = data.get(done..) else { break };
            slice.copy_from(rest);
            done += slice.len().min(rest.len());
        }
        enough(done, data.len(), offset)
    }

    /// The host's view of up to `len` readable bytes beginning at byte `offset`, for readv and writev. Shorter when the chain ends.
    ///
    /// # Errors
    /// When guest memory cannot be reached.
    pub fn readable_slices<'m>(
        &self,
        memory: &'m GuestMemory,
        offset: usize,
        len: usize,
    ) -> Result<Vec<VolatileSlice<'m>>, Error> {
        slices(memory, &self.readable, offset, len)
    }

    /// The host's view of up to `len` writable bytes beginning at byte `offset`. Shorter when the chain ends.
    ///
    /// # Errors
    /// When guest memory cannot be reached.
    pub fn writable_slices<'m>(
        &self,
        memory: &'m GuestMemory,
        offset: usize,
        len: usize,
    ) -> Result<Vec<VolatileSlice<'m>>, Error> {
        slices(memory, &self.writable, offset, len)
    }

    /// Follows the chain from `head`, and checks all of it.
    fn walk(memory: &GuestMemory, layout: Layout, head: u16) -> Result<Self, Error> {
        let mut chain = Chain {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut table = Table {
            base: layout.descriptors,
            size: layout.size,
            indirect: false,
        };
        let mut index = head;
        let mut bytes = 0u32;
        // A chain that has run through as many descriptors as the queue has, and goes on, is a cycle or cheats (2.7.5.2).
        // The entry that refers to an indirect table does not count.
        for _ in 0..=layout.size {
            let descriptor = table.read(memory, index)?;
            let flags = u32::from(descriptor.flags());
            let continues = flags & VRING_DESC_F_NEXT != 0;
            if flags & VRING_DESC_F_INDIRECT != 0 {
                table = table.enter(&descriptor, continues)?;
                index = 0;
                continue;
            }
            let segment = Segment {
                addr: descriptor.addr(),
                len: descriptor.len(),
            };
            bytes = bytes
                .checked_add(segment.check(memory)?)
                .ok_or(Error::TooBig)?;
            if flags & VRING_DESC_F_WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(Error::Order);
            }
            if !continues {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(Error::TooLong(layout.size))
    }
}

impl Segment {
    /// Its length, once it is known to lie in RAM.
    fn check(&self, memory: &GuestMemory) -> Result<u32, Error> {
        if self.len == 0 {
            return Err(Error::ZeroLength);
        }
        // u32 to usize: x86_64 only.
        if !memory.check_range(self.addr, self.len as usize, Permissions::ReadWrite) {
            return Err(Error::OutsideMemory {
                addr: self.addr.raw_value(),
                len: self.len,
            });
        }
        Ok(self.len)
    }
}

/// The table that a chain's indices point into: the queue's, or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    base: GuestAddress,
    size: u16,
    indirect: bool,
}

impl Table {
    fn read(&self, memory: &GuestMemory, index: u16) -> Result<Descriptor, Error> {
        if index >= self.size {
            return Err(Error::DescriptorIndex {
                index,
                size: self.size,
            });
        }
        let offset = u64::from(index) * DESCRIPTOR_SIZE;
        let addr = self.base.checked_add(offset).ok_or(Error::Indirect)?;
        let raw: RawDescriptor = memory.read_obj(addr).map_err(Error::Memory)?;
        Ok(Descriptor::from(raw))
    }

    /// The table that `descriptor` refers to (virtio 1.2, 2.7.5.3).
    fn enter(&self, descriptor: &Descriptor, continues: bool) -> Result<Table, Error> {
        let len = u64::from(descriptor.len());
        let size = u16::try_from(len / DESCRIPTOR_SIZE).map_err(|_| Error::Indirect)?;
        if self.indirect || continues || size == 0 || len % DESCRIPTOR_SIZE != 0 {
            return Err(Error::Indirect);
        }
        Ok(Table {
            base: descriptor.addr(),
            size,
            indirect: true,
        })
    }
}

fn total(segments: &[Segment]) -> usize {
    // Each chain was seen to sum up to less than 4 GiB.
    segments.iter().map(|segment| segment.len as usize).sum()
}

fn enough(done: usize, wanted: usize, offset: usize) -> Result<(), Error> {
    if done == wanted {
        return Ok(());
    }
    Err(Error::Short {
        need: offset.saturating_add(wanted),
        have: offset.saturating_add(done),
    })
}

/// The host's view of `len` bytes of `segments` from byte `offset` on.
fn slices<'m>(
    memory: &'m GuestMemory,
    segments: &[Segment],
    mut offset: usize,
    mut len: usize,
) -> Result<Vec<VolatileSlice<'m>>, Error> {
    let mut found = Vec::with_capacity(segments.len());
    for segment in segments {
        let size = segment.len as usize;
        if offset >= size {
            offset -= size;
            continue;
        }
        let take = (size - offset).min(len);
        if take == 0 {
            break;
        }
        let start = segment
            .addr
            .checked_add(offset as u64)
            .ok_or(Error::Invalid)?;
        for slice in memory
            .get_slices(start, take, Permissions::ReadWrite)
            .map_err(Error::Memory)?
        {
            found.push(slice.map_err(Error::Memory)?);
        }
        offset = 0;
        len -= take;
    }
    Ok(found)
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
#[path = "queue_tests.rs"]
mod tests;
