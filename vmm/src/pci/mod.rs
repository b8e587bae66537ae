//! The PCI root: bus 0, its functions, and the three ways to reach them.
//!
//! A guest finds functions through configuration space (by ECAM, or by the ports 0xcf8 and 0xcfc) and uses them through their BARs,
//! which lie in the window below the ECAM. The BARs are assigned here, as firmware would do it. A guest may move them, but
//! only within the window and not onto each other: a BAR that is put elsewhere is nowhere.
//!
//! Locks: a function's own, then the map of the window. No function calls back into the root.

pub mod config_space;
mod host_bridge;
pub mod msix;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::arch::x86_64::layout;
use crate::bus;
use crate::devices::virtio;

/// What is on the bus: one function a device.
pub trait Function: Send {
    /// Its configuration space is read.
    fn read_config(&mut self, at: usize, data: &mut [u8]);
    /// Its configuration space is written.
    fn write_config(&mut self, at: usize, data: &[u8]);
    /// The size of its BAR: a power of two; 0 without one.
    fn bar_size(&self) -> u32;
    /// Firmware gives the BAR its place.
    fn assign_bar(&mut self, address: u32);
    /// Where its configuration space says that the BAR is; `None` while it does not decode.
    fn bar(&self) -> Option<u64>;
    /// Where the root lets the BAR be.
    fn place(&mut self, bar: Option<u64>);
    /// Its BAR is read.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Its BAR is written.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// What it is, for people; `None` for what nobody asks for.
    fn describe(&self) -> Option<Identity>;
    /// The VM has ended: no more work.
    fn stop(&mut self);
    /// Gives back the device behind it, idle, so that it can be put behind another function.
    fn release(self: Box<Self>) -> Option<Box<dyn virtio::Device>>;
}

/// What a function is.
#[derive(Debug)]
pub struct Identity {
    /// PCI's vendor id.
    pub vendor: u16,
    /// PCI's device id.
    pub device: u16,
    /// Such as `virtio-blk`.
    pub kind: &'static str,
    /// What it has done.
    pub counters: Vec<(&'static str, u64)>,
}

/// What a function is, and where.
#[derive(Debug)]
pub struct Description {
    /// As lspci prints it.
    pub address: String,
    /// PCI's vendor id.
    pub vendor: u16,
    /// PCI's device id.
    pub device: u16,
    /// Such as `virtio-blk`.
    pub kind: &'static str,
    /// What it has done.
    pub counters: Vec<(&'static str, u64)>,
}

/// Why a function has no place on the bus.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All 32 device numbers are taken.
    #[error("the VM has more devices than a PCI bus, 31; give it fewer")]
    BusFull,
    /// No address is left for its BAR.
    #[error("the PCI window has no room for a BAR of {0:#x} bytes")]
    WindowFull(u32),
    /// An eventfd could not be had.
    #[error("cannot create a PCI device's events")]
    Events(#[from] std::io::Error),
}

/// The devices of a bus.
const DEVICES: usize = 32;
/// `CONFIG_ADDRESS` bit 31: the data port reaches configuration space.
const CONFIG_ENABLE: u32 = 1 << 31;

type Slot = Arc<Mutex<Box<dyn Function>>>;

/// Bus 0.
pub struct Root {
    /// By device number.
    slots: RwLock<Vec<Slot>>,
    /// The BARs in the window: first address to size and device number.
    window: Mutex<BTreeMap<u64, (u64, usize)>>,
    /// The address port.
    address: Mutex<u32>,
}

impl Default for Root {
    fn default() -> Self {
        Root::new()
    }
}

impl Root {
    /// A bus with nothing but its host bridge.
    pub fn new() -> Self {
        let bridge: Box<dyn Function> = Box::new(host_bridge::HostBridge::new());
        Root {
            slots: RwLock::new(vec![Arc::new(Mutex::new(bridge))]),
            window: Mutex::default(),
            address: Mutex::default(),
        }
    }

    /// Puts a function on the bus: the next device number, a place for its BAR.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add(&self, mut function: Box<dyn Function>) -> Result<(), Error> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let device = slots.len();
        if device >= DEVICES {
            return Err(Error::BusFull);
        }
        let size = function.bar_size();
        if size > 0 {
            let place = self.free(size).ok_or(Error::WindowFull(size))?;
            function.assign_bar(place);
            self.place(device, function.as_mut());
        }
        slots.push(Arc::new(Mutex::new(function)));
        Ok(())
    }

    /// What is on the bus.
    pub fn describe(&self) -> Vec<Description> {
        let mut found = Vec::new();
        for device in 0..DEVICES {
            let identity = self.slot(device).and_then(|slot| lock(&slot).describe());
            if let Some(Identity {
                vendor,
                device: id,
                kind,
                counters,
            }) = identity
            {
                let address = format!("0000:00:{device:02x}.0");
                found.push(Description {
                    address,
                    vendor,
                    device: id,
                    kind,
                    counters,
                });
            }
        }
        found
    }

    /// Stops every function. To be called when no vCPU runs any more.
    pub fn stop(&self) {
        for slot in (0..DEVICES).filter_map(|device| self.slot(device)) {
            lock(&slot).stop();
        }
    }

    /// Takes everything off the bus, and gives back the devices in their order. To be called behind [`Root::stop`].
    pub fn release(&self) -> Vec<Box<dyn virtio::Device>> {
        let slots =
            std::mem::take(&mut *self.slots.write().unwrap_or_else(PoisonError::into_inner));
        slots
            .into_iter()
            // No vCPU runs any more, so nobody else holds a slot.
            .filter_map(Arc::into_inner)
            .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner))
            .filter_map(Function::release)
            .collect()
    }

    /// Configuration space by memory accesses (PCI Express 6.0, 7.2.2).
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn bus::Device> {
        Arc::new(Ecam(self.clone()))
    }

    /// Configuration space by ports (PCI Local Bus 3.0, 3.2.2.3.2).
    pub fn ports(self: &Arc<Self>) -> Arc<dyn bus::Device> {
        Arc::new(Ports(self.clone()))
    }

    /// The BARs.
    pub fn window(self: &Arc<Self>) -> Arc<dyn bus::Device> {
        Arc::new(Window(self.clone()))
    }

    fn slot(&self, device: usize) -> Option<Slot> {
        self.slots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(device)
            .cloned()
    }

    fn bars(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, usize)>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_config(&self, function: Address, data: &mut [u8]) {
        if let Some(slot) = self.slot(function.device).filter(|_| function.number == 0) {
            lock(&slot).read_config(function.register, data);
        }
    }

    fn write_config(&self, function: Address, data: &[u8]) {
        if let Some(slot) = self.slot(function.device).filter(|_| function.number == 0) {
            let mut slot = lock(&slot);
            slot.write_config(function.register, data);
            self.place(function.device, slot.as_mut());
        }
    }

    /// Lets the function's BAR be where its configuration space says, if that is free and in the window.
    fn place(&self, device: usize, function: &mut dyn Function) {
        let size = u64::from(function.bar_size());
        let mut bars = self.bars();
        bars.retain(|_, (_, owner)| *owner != device);
        let place = function.bar().filter(|start| fits(&bars, *start, size));
        if let Some(start) = place {
            bars.insert(start, (size, device));
        }
        drop(bars);
        function.place(place);
    }

    /// The first address of the window where `size` bytes are free.
    fn free(&self, size: u32) -> Option<u32> {
        let bars = self.bars();
        let end = layout::PCI_WINDOW_START + layout::PCI_WINDOW_SIZE;
        (layout::PCI_WINDOW_START..end)
            .step_by(usize::try_from(size).ok()?)
            .find(|start| fits(&bars, *start, size.into()))
            .and_then(|start| start.try_into().ok())
    }

    /// The function whose BAR covers all of an access, and where in it.
    fn find(&self, offset: u64, len: usize) -> Option<(Slot, u64)> {
        let address = layout::PCI_WINDOW_START.checked_add(offset)?;
        let (device, offset) = {
            let bars = self.bars();
            let (start, (size, device)) = bars.range(..=address).next_back()?;
            let offset = address - start;
            let end = offset.checked_add(len as u64)?;
            (end <= *size).then_some((*device, offset))?
        };
        Some((self.slot(device)?, offset))
    }
}

/// Whether `size` bytes at `start` lie in the window, and on no other BAR.
fn fits(bars: &BTreeMap<u64, (u64, usize)>, start: u64, size: u64) -> bool {
    let window_end = layout::PCI_WINDOW_START + layout::PCI_WINDOW_SIZE;
    let Some(end) = start.checked_add(size) else {
        return false;
    };
    let below = bars.range(..end).next_back();
    let free = below.is_none_or(|(other, (length, _))| other + length <= start);
    size > 0 && start >= layout::PCI_WINDOW_START && end <= window_end && free
}

fn lock(slot: &Slot) -> MutexGuard<'_, Box<dyn Function>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A register of a function on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    device: usize,
    number: usize,
    register: usize,
}

impl Address {
    /// By ECAM: 4 KiB a function, bus 0 alone.
    fn by_ecam(offset: u64) -> Self {
        Address {
            device: (offset >> 15 & 0x1f) as usize,
            number: (offset >> 12 & 7) as usize,
            register: (offset & 0xfff) as usize,
        }
    }

    /// By the address port; `None` for another bus, or while it is off.
    fn by_port(address: u32, byte: u64) -> Option<Self> {
        let bus = address >> 16 & 0xff;
        (address & CONFIG_ENABLE != 0 && bus == 0).then(|| Address {
            device: (address >> 11 & 0x1f) as usize,
            number: (address >> 8 & 7) as usize,
            register: (address & 0xfc) as usize + byte as usize,
        })
    }
}

struct Ecam(Arc<Root>);

impl bus::Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(Address::by_ecam(offset), data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config(Address::by_ecam(offset), data);
    }
}

struct Ports(Arc<Root>);

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
            self.0.read_config(target, data);
        } else if offset == 0 {
            let address = self.address().to_le_bytes();
            data.iter_mut()
                .zip(address)
                .for_each(|(place, byte)| *place = byte);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(target) = self.target(offset) {
            self.0.write_config(target, data);
        } else if let (0, Ok(bytes)) = (offset, data.try_into()) {
            *self.address() = u32::from_le_bytes(bytes);
        }
    }
}

struct Window(Arc<Root>);

impl bus::Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((slot, offset)) = self.0.find(offset, data.len()) {
            lock(&slot).read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.0.find(offset, data.len()) {
            lock(&slot).write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests;
