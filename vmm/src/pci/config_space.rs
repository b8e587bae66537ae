//! The 256 bytes of a function's configuration space (PCI Local Bus 3.0, 6): what is read, and which bits can be written.

/// The size in bytes.
pub const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
/// What a driver may set: memory decoding, bus mastering, interrupt disable.
const COMMAND_WRITABLE: [u8; 2] = [0x06, 0x04];
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// Where capabilities begin, behind the header.
const HEADER_END: usize = 0x40;

/// Says of a device's first function that there are others (PCI Local Bus 3.0, 6.2.1), in what was read of it from `at` on.
pub fn say_multifunction(at: usize, data: &mut [u8]) {
    const HEADER_TYPE: usize = 0x0e;
    const MULTIFUNCTION: u8 = 0x80;
    let offset = HEADER_TYPE.checked_sub(at);
    if let Some(byte) = offset.and_then(|offset| data.get_mut(offset)) {
        *byte |= MULTIFUNCTION;
    }
}

/// A function's configuration space. At most one BAR, of 32 bits: nothing here needs more.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Where the last capability's address stands.
    tail: usize,
    end: usize,
    bar_size: u32,
}

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The vendor, also of the subsystem.
    pub vendor: u16,
    /// The device, also of the subsystem.
    pub device: u16,
    /// The revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            tail: CAPABILITIES,
            end: HEADER_END,
            bar_size: 0,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        let [class, subclass, interface] = identity.class;
        space.set(0x08, &[identity.revision, interface, subclass, class]);
        space.set(0x2c, &identity.vendor.to_le_bytes());
        space.set(0x2e, &identity.device.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE);
        space
    }

    /// Gives it a 32-bit memory BAR of `size` bytes, a power of two of at least 16. A driver that writes ones reads the size back,
    /// because the bits below it cannot be written.
    pub fn with_bar(mut self, size: u32) -> Self {
        self.bar_size = size;
        self.allow(BAR0, &size.wrapping_neg().to_le_bytes());
        self
    }

    /// The BAR's size; 0 without one.
    pub fn bar_size(&self) -> u32 {
        self.bar_size
    }

    /// Puts the BAR somewhere and turns it on, as firmware does.
    pub fn assign_bar(&mut self, address: u32) {
        self.set(BAR0, &address.to_le_bytes());
        self.set(COMMAND, &[COMMAND_MEMORY]);
    }

    /// Where the BAR is to be, when the function decodes memory accesses.
    pub fn bar(&self) -> Option<u64> {
        let enabled = self.byte(COMMAND) & COMMAND_MEMORY != 0 && self.bar_size > 0;
        enabled.then(|| u64::from(self.dword(BAR0)))
    }

    /// Adds a capability: its id, and what follows the next pointer. Returns where it begins.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.end;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.set(self.tail, &[at as u8]);
        self.set(STATUS, &[STATUS_CAPABILITIES]);
        self.tail = at + 1;
        self.end = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the driver write the bits of `mask` from `at` on.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        for (place, byte) in self.writable.iter_mut().skip(at).zip(mask) {
            *place = *byte;
        }
    }

    /// Four bytes, little-endian; ones behind the end.
    pub fn dword(&self, at: usize) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.byte(at.saturating_add(i))))
    }

    /// The driver reads. There is no extended configuration space.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        for (offset, byte) in data.iter_mut().enumerate() {
            *byte = self.byte(at.saturating_add(offset));
        }
    }

    /// The driver writes; bits that it may not write stay as they are.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable);
        for ((place, mask), byte) in places.skip(at).zip(data) {
            *place = (*place & !mask) | (byte & mask);
        }
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let class = [1, 0x80, 0];
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class,
        };
        ConfigSpace::new(identity).with_bar(0x8000)
    }

    #[test]
    fn sizing_a_bar_shows_its_size_and_its_place_comes_back() {
        let mut space = space();
        space.assign_bar(0xc000_0000);
        assert_eq!(space.bar(), Some(0xc000_0000));
        space.write(COMMAND, &[0, 0]);
        space.write(BAR0, &[0xff; 4]);
        assert_eq!(space.dword(BAR0), 0xffff_8000);
        assert_eq!(space.bar(), None, "not while memory decoding is off");
        space.write(BAR0, &0xc000_0000u32.to_le_bytes());
        space.write(COMMAND, &[2]);
        assert_eq!(space.bar(), Some(0xc000_0000));
    }

    #[test]
    fn what_is_read_only_stays() {
        let mut space = space();
        space.write(0, &[0xff; SIZE + 10]);
        assert_eq!(space.dword(0), 0x1042_1af4);
        assert_eq!(space.dword(0x14), 0);
        space.write(usize::MAX, &[1]);
        let mut data = [0; 8];
        space.read(SIZE - 4, &mut data);
        assert_eq!(data[4..], [0xff; 4]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3]);
        let second = space.add_capability(0x11, &[4, 5]);
        assert_eq!(usize::from(space.byte(CAPABILITIES)), first);
        assert_eq!(usize::from(space.byte(first + 1)), second);
        assert_eq!(space.byte(second + 1), 0);
        assert_eq!(second % 4, 0);
    }
}
