//! The PCI root: bus 0, its functions, and the three ways to reach them.
//!
//! A guest finds functions through configuration space (by ECAM, or by the ports 0xcf8 and 0xcfc) and uses them through their BARs,
//! which lie in the window below the ECAM, or in one above all memory if they are of 64 bits. The BARs are assigned here, as firmware
//! would do it. A guest may move them, but only within the windows and not onto each other: a BAR that is put elsewhere is nowhere.
//!
//! Locks: a function's own, then the map of the windows. No function calls back into the root.

mod bar;
pub mod config_space;
mod device_number;
mod function_number;
mod host_bridge;
pub mod msix;
pub mod vectors;
mod ways;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use bar::{Bar, BarIndex, Bits};
pub use device_number::{DeviceNumber, NoDeviceNumber};
pub use function_number::FunctionNumber;
use ways::{Ecam, Ports, Window};

use crate::arch::x86_64::layout;
use crate::bus;
use crate::devices::{vfio, virtio};

/// What is on the bus. A device of ours has one function; those of the host's that are in one slot there are in one here.
pub trait Function: Send {
    /// Its configuration space is read.
    fn read_config(&mut self, at: usize, data: &mut [u8]);
    /// Its configuration space is written.
    fn write_config(&mut self, at: usize, data: &[u8]);
    /// Its BARs, in the order of their indices.
    fn bars(&self) -> &[Bar];
    /// It is on the bus, here.
    fn settle(&mut self, _number: FunctionNumber) {}
    /// Firmware gives a BAR its place.
    fn assign_bar(&mut self, bar: BarIndex, address: u64);
    /// Where its configuration space says that a BAR is; `None` while it does not decode.
    fn bar(&self, bar: BarIndex) -> Option<u64>;
    /// Where the root lets a BAR be. It is called again where nothing has changed.
    fn place(&mut self, bar: BarIndex, at: Option<u64>);
    /// A BAR is read.
    fn read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);
    /// A BAR is written.
    fn write(&mut self, bar: BarIndex, offset: u64, data: &[u8]);
    /// What it is, for people; `None` for what nobody asks for.
    fn describe(&self) -> Option<Identity>;
    /// The VM has ended: no more work.
    fn stop(&mut self);
    /// Gives back the device behind it, idle, so that it can be put behind another function.
    fn release(self: Box<Self>) -> Option<Released>;
}

/// What was behind a function.
pub enum Released {
    /// A device of ours.
    Virtio(Box<dyn virtio::Device>),
    /// One of the host's.
    Host(Box<vfio::Device>),
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
    pub number: FunctionNumber,
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
    WindowFull(u64),
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
    /// By device number and function.
    slots: [[Slot; FunctionNumber::COUNT]; DeviceNumber::COUNT],
    /// The window for BARs of 64 bits, which may be empty.
    window64: Range<u64>,
    placed: Mutex<Placed>,
    /// The address port.
    address: Mutex<u32>,
}

impl Default for Root {
    fn default() -> Self {
        Root::new()
    }
}

/// A BAR that decodes.
#[derive(Clone, Copy, Debug)]
struct Decoded {
    size: u64,
    number: FunctionNumber,
    bar: BarIndex,
}

/// The BARs in the windows, by their first addresses.
type Placed = BTreeMap<u64, Decoded>;

/// The window for BARs of 32 bits, where those of 64 bits may be as well.
const WINDOW32: Range<u64> =
    layout::PCI_WINDOW_START..layout::PCI_WINDOW_START + layout::PCI_WINDOW_SIZE;

impl Root {
    /// A bus with nothing but its host bridge, and a window below 4 GiB alone.
    pub fn new() -> Self {
        Root::with_window64(0..0)
    }

    /// The same with a window above all memory as well.
    pub fn with_window64(window64: Range<u64>) -> Self {
        let root = Root {
            slots: Default::default(),
            window64,
            placed: Mutex::default(),
            address: Mutex::default(),
        };
        *root.slot(DeviceNumber::HOST_BRIDGE.into()) =
            Some(Box::new(host_bridge::HostBridge::new()));
        root
    }

    /// Puts a function on the bus before the guest runs, as firmware hands it over: with a place for its BARs, and at `at` where it has to
    /// be there, else as the first of a device that is not there yet.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add(
        &self,
        mut function: Box<dyn Function>,
        at: Option<FunctionNumber>,
    ) -> Result<FunctionNumber, Error> {
        let number = match at {
            Some(at) => at,
            None => self.absent(DeviceNumber::LAST)?.into(),
        };
        let mut slot = self.slot(number);
        if slot.is_some() {
            return Err(Error::BusFull);
        }
        function.settle(number);
        if let Err(error) = self.assign(number, function.as_mut()) {
            self.displace(number, function.as_mut());
            return Err(error);
        }
        *slot = Some(function);
        Ok(number)
    }

    /// Gives each BAR of a function a place.
    fn assign(&self, number: FunctionNumber, function: &mut dyn Function) -> Result<(), Error> {
        let bars = function.bars().to_vec();
        // A ROM is given a place by whoever wants to read it.
        for bar in bars.into_iter().filter(|bar| bar.index != BarIndex::ROM) {
            let place = self.free(bar).ok_or(Error::WindowFull(bar.size))?;
            function.assign_bar(bar.index, place);
            self.place(number, function);
        }
        Ok(())
    }

    /// Puts a function on the bus while the guest runs. Its BAR decodes nothing: where there is room is for the guest to say, which may
    /// be moving other BARs about just now. The device number is `last` at most.
    ///
    /// # Errors
    /// When there is no room.
    pub fn plug(
        &self,
        mut function: Box<dyn Function>,
        last: DeviceNumber,
    ) -> Result<DeviceNumber, Error> {
        let number = self.absent(last)?;
        function.settle(number.into());
        *self.slot(number.into()) = Some(function);
        Ok(number)
    }

    /// The first device number that is free, up to `last`. Nobody else puts anything on the bus meanwhile: that is the controller's to do.
    fn absent(&self, last: DeviceNumber) -> Result<DeviceNumber, Error> {
        DeviceNumber::all()
            .take_while(|number| *number <= last)
            .find(|number| !self.has(*number))
            .ok_or(Error::BusFull)
    }

    /// Takes a device off the bus, with all of its functions: from now on the guest finds nothing there. They work on until they are
    /// stopped. The host bridge stays.
    pub fn remove(&self, number: DeviceNumber) -> Vec<Box<dyn Function>> {
        if number == DeviceNumber::HOST_BRIDGE {
            return Vec::new();
        }
        let taken = FunctionNumber::all_of(number).filter_map(|number| {
            let mut slot = self.slot(number);
            let mut function = slot.take()?;
            self.displace(number, function.as_mut());
            Some(function)
        });
        taken.collect()
    }

    /// Has none of a function's BARs be anywhere.
    fn displace(&self, number: FunctionNumber, function: &mut dyn Function) {
        self.placed().retain(|_, placed| placed.number != number);
        for bar in function.bars().to_vec() {
            function.place(bar.index, None);
        }
    }

    /// What is on the bus, but for the host bridge.
    pub fn describe(&self) -> Vec<Description> {
        let described = |number| {
            let identity = self.slot(number).as_ref()?.describe()?;
            Some(Description { number, identity })
        };
        all().filter_map(described).collect()
    }

    /// Whether anything is there.
    pub fn has(&self, number: DeviceNumber) -> bool {
        self.functions(number) > 0
    }

    /// How many functions a device has.
    fn functions(&self, number: DeviceNumber) -> usize {
        let there = |number: &FunctionNumber| self.slot(*number).is_some();
        FunctionNumber::all_of(number).filter(there).count()
    }

    /// Stops every function. To be called when no vCPU runs any more.
    pub fn stop(&self) {
        for number in all() {
            if let Some(function) = self.slot(number).as_mut() {
                function.stop();
            }
        }
    }

    /// Takes everything off the bus, and gives back the devices with where they were, in that order. To be called behind [`Root::stop`].
    pub fn release(&self) -> Vec<(FunctionNumber, Released)> {
        let released = |number| Some((number, self.slot(number).take()?.release()?));
        all().filter_map(released).collect()
    }

    /// Configuration space by memory accesses (PCI Express 6.0, 7.2.2).
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn bus::Device> {
        Arc::new(Ecam(self.clone()))
    }

    /// Configuration space by ports (PCI Local Bus 3.0, 3.2.2.3.2).
    pub fn ports(self: &Arc<Self>) -> Arc<dyn bus::Device> {
        Arc::new(Ports(self.clone()))
    }

    /// The BARs below 4 GiB.
    pub fn window(self: &Arc<Self>) -> Arc<dyn bus::Device> {
        Arc::new(Window {
            root: self.clone(),
            start: WINDOW32.start,
        })
    }

    /// The BARs above all memory, if there is room for any: where that begins, and its size.
    pub fn window64(self: &Arc<Self>) -> Option<(u64, u64, Arc<dyn bus::Device>)> {
        let Range { start, end } = self.window64;
        let size = end.checked_sub(start).filter(|size| *size > 0)?;
        let window = Window {
            root: self.clone(),
            start,
        };
        Some((start, size, Arc::new(window)))
    }

    fn slot(&self, number: FunctionNumber) -> Place<'_> {
        number
            .of(&self.slots)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn placed(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_config(&self, number: FunctionNumber, register: usize, data: &mut [u8]) {
        // Asked before the lock: a slot's is taken by itself.
        let is_first = number == number.device().into();
        let has_more = is_first && self.functions(number.device()) > 1;
        if let Some(function) = self.slot(number).as_mut() {
            function.read_config(register, data);
            if has_more {
                config_space::say_multifunction(register, data);
            }
        }
    }

    fn write_config(&self, number: FunctionNumber, register: usize, data: &[u8]) {
        if let Some(function) = self.slot(number).as_mut() {
            function.write_config(register, data);
            self.place(number, function.as_mut());
        }
    }

    /// Lets the function's BARs be where its configuration space says, if that is free and in a window.
    fn place(&self, number: FunctionNumber, function: &mut dyn Function) {
        let bars = function.bars().to_vec();
        let mut places = Vec::with_capacity(bars.len());
        let mut placed = self.placed();
        placed.retain(|_, placed| placed.number != number);
        for bar in bars {
            let at = function.bar(bar.index);
            let at = at.filter(|start| self.fits(&placed, *start, bar));
            if let Some(start) = at {
                let (size, bar) = (bar.size, bar.index);
                placed.insert(start, Decoded { size, number, bar });
            }
            places.push((bar.index, at));
        }
        drop(placed);
        for (bar, at) in places {
            function.place(bar, at);
        }
    }

    /// The first address where a BAR has room: above all memory if it can be there, so that those that cannot have the rest.
    fn free(&self, bar: Bar) -> Option<u64> {
        let placed = self.placed();
        let high = (bar.bits == Bits::SixtyFour).then(|| self.window64.clone());
        let step = usize::try_from(bar.size).ok()?;
        let mut places = high.into_iter().chain([WINDOW32]).flat_map(|window| {
            let first = window.start.next_multiple_of(bar.size.max(1));
            (first..window.end).step_by(step.max(1))
        });
        places.find(|start| self.fits(&placed, *start, bar))
    }

    /// Whether a BAR at `start` lies in a window that it can be in, and on no other BAR.
    fn fits(&self, placed: &Placed, start: u64, bar: Bar) -> bool {
        let Some(end) = start.checked_add(bar.size) else {
            return false;
        };
        let within = |window: &Range<u64>| window.start <= start && end <= window.end;
        let is_in_window = within(&WINDOW32)
            || (bar.bits == Bits::SixtyFour && !self.window64.is_empty() && within(&self.window64));
        let below = placed.range(..end).next_back();
        let is_free = below.is_none_or(|(other, placed)| other + placed.size <= start);
        bar.size > 0 && is_in_window && is_free
    }

    /// The function whose BAR covers all of an access, which BAR that is, and where in it.
    fn find(&self, address: u64, len: usize) -> Option<(FunctionNumber, BarIndex, u64)> {
        let placed = self.placed();
        let (start, found) = placed.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(len as u64)?;
        (end <= found.size).then_some((found.number, found.bar, offset))
    }
}

/// Every function that a bus can have.
fn all() -> impl Iterator<Item = FunctionNumber> {
    DeviceNumber::all().flat_map(FunctionNumber::all_of)
}

#[cfg(test)]
mod tests;
