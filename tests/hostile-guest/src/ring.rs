//! A split virtqueue's memory (virtio 1.2, 2.7), as its driver writes it: rightly by [`Ring::offer`], or byte by byte.

use crate::ram;

/// VIRTQ_DESC_F_NEXT
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT
pub const INDIRECT: u16 = 4;

/// The number of descriptors: fewer than any device's maximum.
pub const SIZE: u16 = 64;

/// A descriptor's size in bytes.
pub const DESCRIPTOR_SIZE: u64 = 16;

/// Where the parts of a ring lie in its memory; buffers follow.
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;

/// A descriptor (2.7.5).
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptor {
    /// Where the buffer begins.
    pub addr: u64,
    /// How long it is.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// The next descriptor's index.
    pub next: u16,
}

impl Descriptor {
    /// A buffer that the device may read.
    pub fn readable(addr: u64, len: u32) -> Self {
        Descriptor {
            addr,
            len,
            ..Self::default()
        }
    }

    /// A buffer that the device may write.
    pub fn writable(addr: u64, len: u32) -> Self {
        Descriptor {
            flags: WRITE,
            ..Self::readable(addr, len)
        }
    }

    /// A table of `len` bytes.
    pub fn table(addr: u64, len: u32) -> Self {
        Descriptor {
            flags: INDIRECT,
            ..Self::readable(addr, len)
        }
    }

    /// The same, and the chain goes on at `next`.
    pub fn then(self, next: u16) -> Self {
        Descriptor {
            flags: self.flags | NEXT,
            next,
            ..self
        }
    }

    /// Writes it as entry `index` of the table at `table`.
    pub fn write(self, table: u64, index: u16) {
        let at = table + u64::from(index) * DESCRIPTOR_SIZE;
        ram::store(at, self.addr);
        ram::store(at + 8, self.len);
        ram::store(at + 12, self.flags);
        ram::store(at + 14, self.next);
    }
}

/// What a device gave back (2.7.8).
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// The head.
    pub id: u32,
    /// The number of bytes written.
    pub len: u32,
}

/// A ring.
#[derive(Debug)]
pub struct Ring {
    base: u64,
    /// What the driver's index says.
    index: u16,
    /// As many heads as were taken back.
    seen: u16,
}

impl Ring {
    /// A ring in the arena's memory from `base` on.
    pub fn new(base: u64) -> Self {
        Ring {
            base,
            index: 0,
            seen: 0,
        }
    }

    /// Begins anew, with nothing in it.
    pub fn clear(&mut self) {
        ram::fill(self.base, BUFFERS, 0);
        (self.index, self.seen) = (0, 0);
    }

    /// The descriptor table.
    pub fn descriptors(&self) -> u64 {
        self.base
    }

    /// The driver area.
    pub fn driver(&self) -> u64 {
        self.base + DRIVER
    }

    /// The device area.
    pub fn device(&self) -> u64 {
        self.base + DEVICE
    }

    /// The memory for buffers.
    pub fn buffers(&self) -> u64 {
        self.base + BUFFERS
    }

    /// Writes descriptor `index`.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        descriptor.write(self.descriptors(), index);
    }

    /// Makes a head available, without a word about it (2.7.13.2).
    pub fn put(&mut self, head: u16) {
        let slot = u64::from(self.index % SIZE);
        ram::store(self.driver() + 4 + 2 * slot, head);
        self.index = self.index.wrapping_add(1);
    }

    /// Moves the driver's index: what was put is there for the device.
    pub fn publish(&self) {
        self.publish_index(self.index);
    }

    /// Moves the driver's index anywhere.
    pub fn publish_index(&self, index: u16) {
        ram::store(self.driver() + 2, index);
    }

    /// The driver's index as it should be.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Makes a head available.
    pub fn offer(&mut self, head: u16) {
        self.put(head);
        self.publish();
    }

    /// How many heads the device has given back, modulo 65536.
    pub fn used_index(&self) -> u16 {
        ram::load(self.device() + 2)
    }

    /// Whether the device has given back a head that was not taken yet.
    pub fn has_news(&self) -> bool {
        self.used_index() != self.seen
    }

    /// Takes back the next head that the device has given back.
    pub fn take(&mut self) -> Option<Used> {
        if self.used_index() == self.seen {
            return None;
        }
        let entry = self.device() + 4 + 8 * u64::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        Some(Used {
            id: ram::load(entry),
            len: ram::load(entry + 4),
        })
    }

    /// What the device's index will be when the next head is back.
    pub fn awaited(&self) -> u16 {
        self.seen.wrapping_add(1)
    }
}
