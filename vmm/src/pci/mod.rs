//! The PCI root: bus 0, its functions, and the three ways to reach them.
//!
//! A guest finds functions through configuration space (by ECAM, or by the ports 0xcf8 and 0xcfc) and uses them through their BARs,
//! which lie in the window below the ECAM. The BARs are assigned here, as firmware would do it. A guest may move them, but
//! only within the window and not onto each other: a BAR that is put elsewhere is nowhere.
//!
//! Locks: a function's own, then the map of the window. No function calls back into the root.

pub mod config_space;
mod device_number;
mod host_bridge;
pub mod msix;
mod ways;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use device_number::{DeviceNumber, NoDeviceNumber};
use ways::{Ecam, Ports, Window};

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
    /// By what the guest knows it, where that is something that the user chose.
    pub tag: Option<String>,
    /// What it has done.
    pub counters: Vec<(&'static str, u64)>,
}

/// What a function is, and where.
#[derive(Debug)]
pub struct Description {
    /// Where.
    pub number: DeviceNumber,
    /// What.
    pub identity: Identity,
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

/// A place on the bus, with a function or without.
type Slot = Mutex<Option<Box<dyn Function>>>;

/// A place that nobody else looks into meanwhile.
type Place<'r> = MutexGuard<'r, Option<Box<dyn Function>>>;

/// Bus 0.
pub struct Root {
    /// By device number.
    slots: [Slot; DeviceNumber::COUNT],
    /// The BARs in the window: first address to size and device number.
    window: Mutex<BTreeMap<u64, (u64, DeviceNumber)>>,
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
        let root = Root {
            slots: Default::default(),
            window: Mutex::default(),
            address: Mutex::default(),
        };
        *root.slot(DeviceNumber::HOST_BRIDGE) = Some(Box::new(host_bridge::HostBridge::new()));
        root
    }

    /// Puts a function on the bus before the guest runs, as firmware hands it over: with a place for its BAR, and at the device number `at`
    /// where it has to be at one, else at the first that is free.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add(
        &self,
        mut function: Box<dyn Function>,
        at: Option<DeviceNumber>,
    ) -> Result<DeviceNumber, Error> {
        let (number, mut slot) = self.empty_slot(|number| at.is_none_or(|at| at == number))?;
        let size = function.bar_size();
        if size > 0 {
            let place = self.free(size).ok_or(Error::WindowFull(size))?;
            function.assign_bar(place);
            self.place(number, function.as_mut());
        }
        *slot = Some(function);
        Ok(number)
    }

    /// Puts a function on the bus while the guest runs. Its BAR decodes nothing: where there is room is for the guest to say, which may
    /// be moving other BARs about just now. The device number is `last` at most.
    ///
    /// # Errors
    /// When there is no room.
    pub fn plug(
        &self,
        function: Box<dyn Function>,
        last: DeviceNumber,
    ) -> Result<DeviceNumber, Error> {
        let (number, mut slot) = self.empty_slot(|number| number <= last)?;
        *slot = Some(function);
        Ok(number)
    }

    /// The first device number that is free, of those that will do.
    fn empty_slot(
        &self,
        will_do: impl Fn(DeviceNumber) -> bool,
    ) -> Result<(DeviceNumber, Place<'_>), Error> {
        DeviceNumber::all()
            .filter(|number| will_do(*number))
            .map(|number| (number, self.slot(number)))
            .find(|(_, slot)| slot.is_none())
            .ok_or(Error::BusFull)
    }

    /// Takes a function off the bus: from now on the guest finds nothing there. It works on until it is stopped. The host bridge stays.
    pub fn remove(&self, number: DeviceNumber) -> Option<Box<dyn Function>> {
        if number == DeviceNumber::HOST_BRIDGE {
            return None;
        }
        let mut slot = self.slot(number);
        let mut function = slot.take()?;
        self.bars().retain(|_, (_, owner)| *owner != number);
        function.place(None);
        Some(function)
    }

    /// What is on the bus, but for the host bridge.
    pub fn describe(&self) -> Vec<Description> {
        let described = |number| {
            let identity = self.slot(number).as_ref()?.describe()?;
            Some(Description { number, identity })
        };
        DeviceNumber::all().filter_map(described).collect()
    }

    /// Whether anything is there.
    pub fn has(&self, number: DeviceNumber) -> bool {
        self.slot(number).is_some()
    }

    /// Stops every function. To be called when no vCPU runs any more.
    pub fn stop(&self) {
        for number in DeviceNumber::all() {
            if let Some(function) = self.slot(number).as_mut() {
                function.stop();
            }
        }
    }

    /// Takes everything off the bus, and gives back the devices with where they were, in that order. To be called behind [`Root::stop`].
    pub fn release(&self) -> Vec<(DeviceNumber, Box<dyn virtio::Device>)> {
        let released = |number| Some((number, self.slot(number).take()?.release()?));
        DeviceNumber::all().filter_map(released).collect()
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

    fn slot(&self, number: DeviceNumber) -> Place<'_> {
        number
            .of(&self.slots)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn bars(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, DeviceNumber)>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_config(&self, number: DeviceNumber, register: usize, data: &mut [u8]) {
        if let Some(function) = self.slot(number).as_mut() {
            function.read_config(register, data);
        }
    }

    fn write_config(&self, number: DeviceNumber, register: usize, data: &[u8]) {
        if let Some(function) = self.slot(number).as_mut() {
            function.write_config(register, data);
            self.place(number, function.as_mut());
        }
    }

    /// Lets the function's BAR be where its configuration space says, if that is free and in the window.
    fn place(&self, number: DeviceNumber, function: &mut dyn Function) {
        let size = u64::from(function.bar_size());
        let mut bars = self.bars();
        bars.retain(|_, (_, owner)| *owner != number);
        let place = function.bar().filter(|start| fits(&bars, *start, size));
        if let Some(start) = place {
            bars.insert(start, (size, number));
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
    fn find(&self, offset: u64, len: usize) -> Option<(DeviceNumber, u64)> {
        let address = layout::PCI_WINDOW_START.checked_add(offset)?;
        let bars = self.bars();
        let (start, (size, number)) = bars.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(len as u64)?;
        (end <= *size).then_some((*number, offset))
    }
}

/// Whether `size` bytes at `start` lie in the window, and on no other BAR.
fn fits(bars: &BTreeMap<u64, (u64, DeviceNumber)>, start: u64, size: u64) -> bool {
    let window_end = layout::PCI_WINDOW_START + layout::PCI_WINDOW_SIZE;
    let Some(end) = start.checked_add(size) else {
        return false;
    };
    let below = bars.range(..end).next_back();
    let free = below.is_none_or(|(other, (length, _))| other + length <= start);
    size > 0 && start >= layout::PCI_WINDOW_START && end <= window_end && free
}

#[cfg(test)]
mod tests;
