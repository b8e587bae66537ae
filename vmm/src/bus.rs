//! Where a guest's port and memory accesses go.
//!
//! The map is built before the first vCPU runs and does not change afterwards: what moves, moves within the PCI window, and
//! [`crate::pci`] finds it there. So a lookup takes no lock.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Something that answers accesses. It is called by any vCPU at any time, so it locks what it must; a vCPU holds no lock while it
/// calls, and a device calls no other through a bus.
pub trait Device: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the device's beginning. The guest chooses both; `data` comes filled with ones,
    /// which is what a bus reads where nothing answers.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset`. The guest chooses both.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices where one can be.
#[derive(Debug, thiserror::Error)]
#[error("{size:#x} bytes at {start:#x} overlap another device")]
pub struct Overlap {
    start: u64,
    size: u64,
}

/// An address space: devices by their first address.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<dyn Device>)>,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `start`, `size` bytes long.
    ///
    /// # Errors
    /// [`Overlap`] when another one is there.
    pub fn insert(
        &mut self,
        start: u64,
        size: u64,
        device: Arc<dyn Device>,
    ) -> Result<(), Overlap> {
        let end = start.checked_add(size).ok_or(Overlap { start, size })?;
        let below = self.devices.range(..end).next_back();
        if size == 0 || below.is_some_and(|(other, (length, _))| other + length > start) {
            return Err(Overlap { start, size });
        }
        self.devices.insert(start, (size, device));
        Ok(())
    }

    /// Reads from whatever is at `address`; ones where nothing is, or where the access runs over the device's end.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes to whatever is at `address`; to nothing where nothing is, or where the access runs over the device's end.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn Device)> {
        let (start, (size, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(len as u64)?;
        (end <= *size).then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Memo(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Memo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_its_device_or_nothing() {
        let device = Arc::new(Memo::default());
        let mut bus = Bus::new();
        bus.insert(0x10, 4, device.clone()).unwrap();
        let mut byte = [0];
        for (address, seen) in [
            (0xf, 0xff),
            (0x10, 0),
            (0x13, 3),
            (0x14, 0xff),
            (u64::MAX, 0xff),
        ] {
            bus.read(address, &mut byte);
            assert_eq!(byte[0], seen, "at {address:#x}");
        }
        bus.write(0x12, &[1, 2]);
        bus.write(0x13, &[1, 2]);
        assert_eq!(
            *device.0.lock().unwrap(),
            [(2, vec![1, 2])],
            "no access over the end"
        );
    }

    #[test]
    fn devices_do_not_overlap() {
        let mut bus = Bus::new();
        let device = || Arc::new(Memo::default());
        bus.insert(0x10, 4, device()).unwrap();
        assert!(bus.insert(0x13, 1, device()).is_err());
        assert!(bus.insert(0xf, 2, device()).is_err());
        assert!(bus.insert(0x8, 0x100, device()).is_err());
        assert!(bus.insert(u64::MAX, 2, device()).is_err());
        bus.insert(0x14, 1, device()).unwrap();
        bus.insert(0xf, 1, device()).unwrap();
    }
}
