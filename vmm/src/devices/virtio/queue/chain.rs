//! One request's buffers: following a chain of descriptors, checking all of it, and reaching the memory behind it.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, VolatileMemory as _, VolatileSlice};

use super::window::Window;
use super::{Error, Layout};
use crate::devices::virtio::GuestMemory;

/// A descriptor's size in bytes (virtio 1.2, 2.7.5).
const DESCRIPTOR_SIZE: usize = 16;

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
    pub(super) fn walk(memory: &GuestMemory, layout: Layout, head: u16) -> Result<Self, Error> {
        let mut chain = Chain {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut window = Window::on(memory);
        let mut table = Table::at(&mut window, layout.descriptors, layout.size, false);
        let mut index = head;
        let mut bytes = 0u32;
        let mut length = 0;
        loop {
            let descriptor = table.read(&window, index)?;
            let flags = u32::from(descriptor.flags());
            let continues = flags & VRING_DESC_F_NEXT != 0;
            if flags & VRING_DESC_F_INDIRECT != 0 {
                // Happens once at most: a table within a table is an error.
                table = table.enter(&mut window, &descriptor, continues)?;
                index = 0;
                continue;
            }
            // A chain that has run through as many descriptors as the queue has, and goes on, is a cycle or cheats (2.7.5.2).
            // The entry that refers to an indirect table does not count.
            if length == layout.size {
                return Err(Error::TooLong(layout.size));
            }
            length += 1;
            let segment = Segment {
                addr: descriptor.addr(),
                len: descriptor.len(),
            };
            bytes = bytes
                .checked_add(segment.check(&mut window)?)
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
    }
}

impl Segment {
    /// Its length, once it is known to lie in RAM.
    fn check(&self, window: &mut Window) -> Result<u32, Error> {
        if self.len == 0 {
            return Err(Error::ZeroLength);
        }
        // u32 to usize: x86_64 only.
        if !window.has(self.addr, self.len as usize) {
            return Err(Error::OutsideMemory {
                addr: self.addr.raw_value(),
                len: self.len,
            });
        }
        Ok(self.len)
    }
}

/// The table that a chain's indices point into: the queue's, or an indirect one.
struct Table<'m> {
    base: GuestAddress,
    size: u16,
    indirect: bool,
    /// All of it, if one region has all.
    whole: Option<VolatileSlice<'m>>,
}

impl<'m> Table<'m> {
    fn at(window: &mut Window<'m>, base: GuestAddress, size: u16, indirect: bool) -> Self {
        Table {
            base,
            size,
            indirect,
            whole: window.whole(base, usize::from(size) * DESCRIPTOR_SIZE),
        }
    }

    fn read(&self, window: &Window, index: u16) -> Result<Descriptor, Error> {
        if index >= self.size {
            return Err(Error::DescriptorIndex {
                index,
                size: self.size,
            });
        }
        let offset = usize::from(index) * DESCRIPTOR_SIZE;
        let raw: RawDescriptor = match &self.whole {
            Some(whole) => whole
                .get_ref(offset)
                .map_err(|error| Error::Memory(error.into()))?
                .load(),
            None => {
                let addr = self.base.checked_add(offset as u64);
                let addr = addr.ok_or(Error::Indirect)?;
                window.memory().read_obj(addr).map_err(Error::Memory)?
            }
        };
        Ok(Descriptor::from(raw))
    }

    /// The table that `descriptor` refers to (virtio 1.2, 2.7.5.3).
    fn enter(
        &self,
        window: &mut Window<'m>,
        descriptor: &Descriptor,
        continues: bool,
    ) -> Result<Self, Error> {
        // u32 to usize: x86_64 only.
        let len = descriptor.len() as usize;
        let size = u16::try_from(len / DESCRIPTOR_SIZE).map_err(|_| Error::Indirect)?;
        if self.indirect || continues || size == 0 || !len.is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(Error::Indirect);
        }
        Ok(Table::at(window, descriptor.addr(), size, true))
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
    let mut window = Window::on(memory);
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
        window.view(start, take, &mut found)?;
        offset = 0;
        len -= take;
    }
    Ok(found)
}
