//! A device's configuration space as a guest sees it (PCI Express 6.0, 7.5): the device's own, where that is safe, and bits of ours on top.
//!
//! Ours are the BARs, whether they decode, the interrupts' capabilities, and the power state: the device itself decodes and is awake as long
//! as it is the VM's, because the kernel answers an access to memory that does not decode with a fault that ends the guest. What would
//! change the shape of the bus, or would need an IOMMU in the guest, is hidden.

use super::capabilities::{self, Capability, byte, dword, word};
use crate::pci::{Bar, BarIndex, Bits};

/// The device behind it.
pub trait Real {
    /// How much configuration space it has, in bytes.
    fn size(&self) -> usize;
    /// How much is behind one of its BARs.
    fn region_size(&self, bar: BarIndex) -> u64;
    /// Reads; ones where nothing answers.
    fn read(&self, at: usize, data: &mut [u8]);
    /// Writes.
    fn write(&self, at: usize, data: &[u8]);
}

/// All of it, with the extended part.
pub const SIZE: usize = 4096;
const SIZE_BEFORE_EXPRESS: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_IO: u8 = 1;
const COMMAND_MEMORY: u8 = 2;
/// In the command register's second byte.
const COMMAND_NO_LINE: u8 = 1 << 2;
const HEADER_TYPE: usize = 0x0e;
const MULTIFUNCTION: u8 = 0x80;
const BARS: usize = 0x10;
const LINE: usize = 0x3c;
const PIN: usize = 0x3d;
const ROM_ENABLE: u32 = 1;
const BAR_IO: u32 = 1;
const BAR_TYPE: u32 = 6;
const BAR_64: u32 = 4;
const BAR_FLAGS: u32 = 0xf;

const CAP_POWER: u16 = 0x01;
const CAP_MSI: u16 = 0x05;
const CAP_MSIX: u16 = 0x11;

/// Extended capabilities that a guest does not see: alternative routing ids, translation services, single-root and multi-root virtualisation,
/// page requests, resizable BARs, process address spaces, and resizable BARs of virtual functions.
const HIDDEN: [u16; 8] = [0x0e, 0x0f, 0x10, 0x11, 0x13, 0x15, 0x1b, 0x24];

/// How a guest wants to be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Not at all.
    Nothing,
    /// By the line.
    Line,
    /// By messages.
    Msi,
    /// By messages in a table, which may all be masked; the capability's control word.
    Msix(u16),
}

/// The table of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    at: usize,
    /// How many messages.
    pub count: usize,
    /// Which BAR has the table, and where in it.
    pub table: (BarIndex, u64),
    /// The same for the pending bits.
    pub pending: (BarIndex, u64),
}

/// MSI (PCI Local Bus 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Messages {
    at: usize,
    is_64: bool,
    is_maskable: bool,
}

/// What is seen.
pub struct ConfigSpace {
    size: usize,
    /// Ours, and whatever where it is the device's.
    bytes: Box<[u8]>,
    /// Which bits are ours.
    ours: Box<[u8]>,
    /// Which of these the driver may write.
    writable: Box<[u8]>,
    bars: Vec<Bar>,
    messages: Option<Messages>,
    table: Option<Table>,
    has_line: bool,
}

/// The BARs of a device. Those for ports are left out: nothing but old drivers uses them where there is memory as well.
pub fn bars(real: &impl Real) -> Vec<Bar> {
    let mut found = Vec::new();
    let mut indices = BarIndex::all();
    while let Some(index) = indices.next() {
        let size = real.region_size(index);
        let flags = read_dword(real, index.register());
        let bits = match flags & BAR_TYPE {
            BAR_64 => Bits::SixtyFour,
            _ => Bits::ThirtyTwo,
        };
        if flags & BAR_IO != 0 || size == 0 {
            continue;
        }
        // Its other half is no BAR.
        if bits == Bits::SixtyFour {
            indices.next();
        }
        let size = size.max(16).checked_next_power_of_two();
        let most = match bits {
            Bits::ThirtyTwo => 1 << 31,
            Bits::SixtyFour => 1 << 62,
        };
        match size.filter(|size| *size <= most) {
            Some(size) => found.push(Bar { index, size, bits }),
            None => log::warn!("BAR {} is too large to be a BAR", index.get()),
        }
    }
    let rom = real.region_size(BarIndex::ROM);
    if (1..=1 << 24).contains(&rom) {
        found.push(Bar {
            index: BarIndex::ROM,
            size: rom.max(2048).next_power_of_two(),
            bits: Bits::ThirtyTwo,
        });
    }
    found
}

fn read_dword(real: &impl Real, at: usize) -> u32 {
    let mut bytes = [0; 4];
    real.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

impl ConfigSpace {
    /// That of a device, as it comes out of a reset; with an interrupt line if it may have one.
    pub fn new(real: &impl Real, may_have_line: bool) -> Self {
        let size = if real.size() < SIZE {
            SIZE_BEFORE_EXPRESS
        } else {
            SIZE
        };
        let mut bytes = vec![0; SIZE].into_boxed_slice();
        for (index, dword) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            if 4 * index < size {
                real.read(4 * index, dword);
            }
        }
        let has_line = may_have_line && byte(&bytes, PIN) != 0;
        let mut space = ConfigSpace {
            size,
            ours: vec![0; SIZE].into_boxed_slice(),
            writable: vec![0; SIZE].into_boxed_slice(),
            bars: bars(real),
            messages: None,
            table: None,
            has_line,
            bytes,
        };
        space.header();
        space.capabilities();
        space.extended();
        space
    }

    /// What of the header is ours.
    fn header(&mut self) {
        self.set(COMMAND, &[0]);
        self.own(COMMAND, &[COMMAND_IO | COMMAND_MEMORY]);
        self.allow(COMMAND, &[COMMAND_MEMORY]);
        let kind = self.byte(HEADER_TYPE) & !MULTIFUNCTION;
        self.set(HEADER_TYPE, &[kind]);
        self.own(HEADER_TYPE, &[MULTIFUNCTION]);
        self.set(LINE, &[0]);
        self.own(LINE, &[0xff]);
        self.allow(LINE, &[0xff]);
        if !self.has_line {
            self.set(PIN, &[0]);
            self.own(PIN, &[0xff]);
        }
        let flags: Vec<_> = BarIndex::all()
            .map(|bar| self.dword(bar.register()) & BAR_FLAGS)
            .collect();
        self.set(BARS, &[0; 24]);
        self.own(BARS, &[0xff; 24]);
        let rom = BarIndex::ROM.register();
        self.set(rom, &[0; 4]);
        self.own(rom, &[0xff; 4]);
        for bar in self.bars.clone() {
            let mask = bar.size.wrapping_neg();
            let at = bar.index.register();
            if bar.index == BarIndex::ROM {
                self.allow(at, &(mask as u32 | ROM_ENABLE).to_le_bytes());
                continue;
            }
            let flags = flags.get(bar.index.get()).copied().unwrap_or(0);
            self.set(at, &flags.to_le_bytes());
            match bar.bits {
                Bits::ThirtyTwo => self.allow(at, &(mask as u32).to_le_bytes()),
                Bits::SixtyFour => self.allow(at, &mask.to_le_bytes()),
            }
        }
    }

    /// What of the capabilities is ours.
    fn capabilities(&mut self) {
        for Capability { id, at } in capabilities::list(&self.bytes) {
            match id {
                CAP_POWER => self.power(at + 4),
                CAP_MSI => self.msi(at),
                CAP_MSIX => self.msix(at),
                _ => {}
            }
        }
    }

    /// The power state's register (PCI Power Management 1.2, 3.2.4): D0 after a reset.
    fn power(&mut self, at: usize) {
        const STATE: u8 = 3;
        let state = self.byte(at) & !STATE;
        self.set(at, &[state, 0]);
        self.own(at, &[0xff, 0xff]);
        self.allow(at, &[STATE, 0]);
    }

    fn msi(&mut self, at: usize) {
        const IS_64: u16 = 1 << 7;
        const IS_MASKABLE: u16 = 1 << 8;
        let control = self.word(at + 2);
        let messages = Messages {
            at,
            is_64: control & IS_64 != 0,
            is_maskable: control & IS_MASKABLE != 0,
        };
        // Not enabled, one message.
        let control = control & !0x71;
        self.set(at + 2, &control.to_le_bytes());
        self.own(at + 2, &[0xff, 0xff]);
        self.allow(at + 2, &[0x71, 0]);
        let data = messages.data();
        self.set(at + 4, &[0; 8]);
        self.own(at + 4, &[0xff; 4]);
        self.allow(at + 4, &[0xfc, 0xff, 0xff, 0xff]);
        if messages.is_64 {
            self.own(at + 8, &[0xff; 4]);
            self.allow(at + 8, &[0xff; 4]);
        }
        self.set(data, &[0; 2]);
        self.own(data, &[0xff; 2]);
        self.allow(data, &[0xff; 2]);
        if messages.is_maskable {
            self.set(data + 4, &[0; 8]);
            self.own(data + 4, &[0xff; 8]);
            self.allow(data + 4, &[0xff; 4]);
        }
        self.messages.get_or_insert(messages);
    }

    fn msix(&mut self, at: usize) {
        let control = self.word(at + 2);
        let place = |dword: u32| Some((BarIndex::new(dword & 7)?, u64::from(dword & !7)));
        let table = place(self.dword(at + 4));
        let pending = place(self.dword(at + 8));
        self.set(at + 2, &(control & 0x7ff).to_le_bytes());
        self.own(at + 2, &[0xff, 0xff]);
        let (Some(table), Some(pending)) = (table, pending) else {
            return;
        };
        let table = Table {
            at,
            count: usize::from(control & 0x7ff) + 1,
            table,
            pending,
        };
        if self.table.is_none() {
            self.allow(at + 2, &[0, 0xc0]);
            self.table = Some(table);
        }
    }

    /// Hides what a guest is not to see of the extended capabilities, by leading the list past it.
    fn extended(&mut self) {
        if self.size < SIZE {
            return;
        }
        let list = capabilities::list_extended(&self.bytes);
        let mut places: Vec<_> = list.iter().map(|capability| capability.at).collect();
        places.sort_unstable();
        let is_hidden = |capability: &&Capability| HIDDEN.contains(&capability.id);
        for Capability { at, .. } in list.iter().filter(is_hidden) {
            // As far as the next, whichever that is.
            let end = places.iter().copied().find(|other| other > at);
            let zeros = vec![0; end.unwrap_or(SIZE).min(at + 0x100) - at];
            self.set(*at, &zeros);
            self.own(*at, &vec![0xff; zeros.len()]);
        }
        // The first is where the list begins, so that it stays, of no kind if it is to be hidden.
        let shown = list
            .iter()
            .enumerate()
            .filter(|(index, capability)| *index == 0 || !is_hidden(capability))
            .map(|(_, capability)| capability.at);
        let shown: Vec<_> = shown.collect();
        let next = shown.iter().skip(1).copied().chain([0]);
        for (at, next) in shown.iter().copied().zip(next) {
            let header = self.dword(at) & 0xf_ffff | (next as u32) << 20;
            self.set(at, &header.to_le_bytes());
            self.own(at, &[0xff; 4]);
        }
    }

    /// Its BARs.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// The table of messages, if it has one.
    pub fn table(&self) -> Option<Table> {
        self.table
    }

    /// How many messages it can have (MSI).
    pub fn messages(&self) -> usize {
        let control = self.messages.map_or(0, |m| self.word(m.at + 2));
        1 << (control >> 1 & 7).min(5)
    }

    /// Puts a BAR somewhere and has it decode, as firmware does.
    pub fn assign_bar(&mut self, bar: BarIndex, address: u64) {
        let found = self.bars.iter().find(|other| other.index == bar).copied();
        let Some(found) = found.filter(|_| bar != BarIndex::ROM) else {
            return;
        };
        let at = bar.register();
        match found.bits {
            Bits::ThirtyTwo => self.put(at, &(address as u32).to_le_bytes()),
            Bits::SixtyFour => self.put(at, &address.to_le_bytes()),
        }
        self.put(COMMAND, &[COMMAND_MEMORY]);
    }

    /// Where a BAR is to be; `None` while it does not decode.
    pub fn bar(&self, bar: BarIndex) -> Option<u64> {
        let found = self.bars.iter().find(|other| other.index == bar)?;
        let low = self.dword(bar.register());
        let decodes = self.byte(COMMAND) & COMMAND_MEMORY != 0
            && (bar != BarIndex::ROM || low & ROM_ENABLE != 0);
        let high = match found.bits {
            Bits::ThirtyTwo => 0,
            Bits::SixtyFour => self.dword(bar.register() + 4),
        };
        let address = u64::from(high) << 32 | u64::from(low);
        decodes.then_some(address & found.size.wrapping_neg())
    }

    /// How the guest wants to be interrupted. `command` is the second byte of the device's command register.
    pub fn wanted(&self, command: u8) -> Wanted {
        const MSIX_ENABLE: u16 = 1 << 15;
        const MSI_ENABLE: u16 = 1;
        let control = |at: Option<usize>| at.map_or(0, |at| self.word(at + 2));
        let msix = control(self.table.map(|table| table.at));
        let msi = control(self.messages.map(|messages| messages.at));
        if msix & MSIX_ENABLE != 0 {
            Wanted::Msix(msix)
        } else if msi & MSI_ENABLE != 0 {
            Wanted::Msi
        } else if self.has_line
            && command & COMMAND_NO_LINE == 0
            && self.byte(COMMAND) & COMMAND_MEMORY != 0
        {
            Wanted::Line
        } else {
            Wanted::Nothing
        }
    }

    /// The messages that a driver has set (MSI): address, data of the first, how many, and which of them are masked.
    pub fn msi_message(&self) -> Option<(u64, u16, usize, u32)> {
        let messages = self.messages?;
        let at = messages.at;
        let high = if messages.is_64 {
            self.dword(at + 8)
        } else {
            0
        };
        let address = u64::from(high) << 32 | u64::from(self.dword(at + 4));
        let data = messages.data();
        let count = 1 << (self.word(at + 2) >> 4 & 7).min(5);
        let masked = if messages.is_maskable {
            self.dword(data + 4)
        } else {
            0
        };
        Some((address, self.word(data), count, masked))
    }

    /// A driver reads.
    pub fn read(&self, real: &impl Real, at: usize, data: &mut [u8]) {
        data.fill(0xff);
        let len = data.len().min(self.size.saturating_sub(at));
        let Some(data) = data.get_mut(..len).filter(|data| !data.is_empty()) else {
            return;
        };
        let ours = |offset: usize| byte(&self.ours, at + offset);
        if (0..len).any(|offset| ours(offset) != 0xff) {
            real.read(at, data);
        }
        for (offset, place) in data.iter_mut().enumerate() {
            let mask = ours(offset);
            *place = *place & !mask | self.byte(at + offset) & mask;
        }
    }

    /// A driver writes.
    pub fn write(&mut self, real: &impl Real, at: usize, data: &[u8]) {
        let len = data.len().min(self.size.saturating_sub(at));
        let Some(data) = data.get(..len).filter(|data| !data.is_empty()) else {
            return;
        };
        let masks: Vec<_> = (at..at + len).map(|at| byte(&self.ours, at)).collect();
        if masks.iter().all(|mask| *mask == 0) {
            real.write(at, data);
        } else {
            for ((offset, mask), value) in masks.iter().enumerate().zip(data) {
                match mask {
                    0xff => {}
                    0 => real.write(at + offset, &[*value]),
                    mask => {
                        let mut now = [0];
                        real.read(at + offset, &mut now);
                        real.write(at + offset, &[value & !mask | now[0] & mask]);
                    }
                }
            }
        }
        self.put(at, data);
    }

    /// Writes what may be written.
    fn put(&mut self, at: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable);
        for ((place, mask), byte) in places.skip(at).zip(data) {
            *place = *place & !mask | byte & mask;
        }
    }

    fn set(&mut self, at: usize, data: &[u8]) {
        fill(&mut self.bytes, at, data);
    }

    fn own(&mut self, at: usize, mask: &[u8]) {
        fill(&mut self.ours, at, mask);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        fill(&mut self.writable, at, mask);
    }

    fn byte(&self, at: usize) -> u8 {
        byte(&self.bytes, at)
    }

    fn word(&self, at: usize) -> u16 {
        word(&self.bytes, at)
    }

    fn dword(&self, at: usize) -> u32 {
        dword(&self.bytes, at)
    }
}

impl Messages {
    /// Where the data is.
    fn data(self) -> usize {
        self.at + if self.is_64 { 12 } else { 8 }
    }
}

fn fill(places: &mut [u8], at: usize, data: &[u8]) {
    for (place, byte) in places.iter_mut().skip(at).zip(data) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests;
