//! The ways to reach a function: its configuration space by ECAM or by ports, its BAR by the window.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::{BarIndex, DeviceNumber, FunctionNumber, Root};
use crate::bus;

/// `CONFIG_ADDRESS` bit 31: the data port reaches configuration space.
const CONFIG_ENABLE: u32 = 1 << 31;

/// A register of a function on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    function: FunctionNumber,
    register: usize,
}

impl Address {
    /// By ECAM: 4 KiB a function, bus 0 alone.
    fn by_ecam(offset: u64) -> Self {
        Address {
            function: FunctionNumber::from_bits(
                DeviceNumber::from_bits(offset >> 15),
                offset >> 12,
            ),
            register: (offset & 0xfff) as usize,
        }
    }

    /// By the address port; `None` for another bus, or while it is off.
    fn by_port(address: u32, byte: u64) -> Option<Self> {
        let bus = address >> 16 & 0xff;
        (address & CONFIG_ENABLE != 0 && bus == 0).then(|| Address {
            function: FunctionNumber::from_bits(
                DeviceNumber::from_bits(u64::from(address >> 11)),
                u64::from(address >> 8),
            ),
            register: (address & 0xfc) as usize + byte as usize,
        })
    }

    fn read(self, root: &Root, data: &mut [u8]) {
        root.read_config(self.function, self.register, data);
    }

    fn write(self, root: &Root, data: &[u8]) {
        root.write_config(self.function, self.register, data);
    }
}

/// Configuration space by memory accesses.
pub(super) struct Ecam(pub(super) Arc<Root>);

impl bus::Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        Address::by_ecam(offset).read(&self.0, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        Address::by_ecam(offset).write(&self.0, data);
    }
}

/// Configuration space by ports.
pub(super) struct Ports(pub(super) Arc<Root>);

/// The data port, behind the address port.
const DATA: u64 = 4;

impl Ports {
    fn address(&self) -> MutexGuard<'_, u32> {
        self.0
            .address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What an access to the data port reaches.
    fn target(&self, offset: u64) -> Option<Address> {
        let byte = offset.checked_sub(DATA)?;
        Address::by_port(*self.address(), byte)
    }
}

impl bus::Device for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(target) = self.target(offset) {
            target.read(&self.0, data);
        } else if offset == 0 {
            let address = self.address().to_le_bytes();
            data.iter_mut()
                .zip(address)
                .for_each(|(place, byte)| *place = byte);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(target) = self.target(offset) {
            target.write(&self.0, data);
        } else if let (0, Ok(bytes)) = (offset, data.try_into()) {
            *self.address() = u32::from_le_bytes(bytes);
        }
    }
}

/// A window of BARs, which begins at `start`.
pub(super) struct Window {
    pub(super) root: Arc<Root>,
    pub(super) start: u64,
}

impl Window {
    /// What an access reaches.
    fn find(&self, offset: u64, len: usize) -> Option<(FunctionNumber, BarIndex, u64)> {
        let address = self.start.checked_add(offset)?;
        self.root.find(address, len)
    }
}

impl bus::Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((number, bar, offset)) = self.find(offset, data.len())
            && let Some(function) = self.root.slot(number).as_mut()
        {
            function.read(bar, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((number, bar, offset)) = self.find(offset, data.len())
            && let Some(function) = self.root.slot(number).as_mut()
        {
            function.write(bar, offset, data);
        }
    }
}
