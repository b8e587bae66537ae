//! A device of the host's as a function on the guest's bus.

use std::sync::Arc;

use super::bars::Bars;
use super::config_space::{ConfigSpace, Table};
use super::device::Device;
use super::error::Error;
use super::ground::{Footing, Ground};
use super::interrupts::Interrupts;
use crate::arch::x86_64::layout;
use crate::pci::msix::ENTRY_SIZE;
use crate::pci::{Bar, BarIndex, Function, FunctionNumber, Identity, Released};

/// The second byte of the command register.
const COMMAND_HIGH: usize = 5;

/// The function.
pub struct VfioPci {
    config: ConfigSpace,
    interrupts: Interrupts,
    /// Until it is stopped.
    bars: Option<Bars>,
    /// Until it is stopped: behind the BARs and interrupts, and before the device ends.
    footing: Option<Footing>,
    device: Box<Device>,
    vendor: u16,
    id: u16,
}

/// What an access to a BAR is to.
enum Part {
    Table(usize),
    Pending(usize),
    Device,
}

impl VfioPci {
    /// A function around `device`, for a machine.
    ///
    /// # Errors
    /// When the guest's memory cannot be pinned for it, KVM refuses it, or an eventfd cannot be had.
    pub fn new(device: Box<Device>, ground: &Arc<Ground>) -> Result<Self, Error> {
        let footing = ground.enter(&device)?;
        let has_line = device.interrupts().line && ground.lines.is_some();
        let config = ConfigSpace::new(&*device, has_line);
        let holes: Vec<_> = config.table().into_iter().flat_map(holes).collect();
        let (vm, slots) = (ground.vm.clone(), ground.slots.clone());
        let bars = Bars::map(&device, config.bars(), &holes, vm, slots);
        let interrupts = Interrupts::new(
            device.file().clone(),
            &config,
            ground.msi.clone(),
            ground.lines.clone(),
        );
        let mut ids = [0; 4];
        device.read_config(0, &mut ids);
        let [v0, v1, d0, d1] = ids;
        Ok(VfioPci {
            config,
            interrupts: interrupts.map_err(Error::Interrupts)?,
            bars: Some(bars),
            footing: Some(footing),
            device,
            vendor: u16::from_le_bytes([v0, v1]),
            id: u16::from_le_bytes([d0, d1]),
        })
    }

    /// Has the interrupts be as the guest wants them now.
    fn follow(&mut self) {
        if self.footing.is_none() {
            return;
        }
        let mut command = [0];
        self.device.read_config(COMMAND_HIGH, &mut command);
        let [command] = command;
        let wanted = self.config.wanted(command);
        self.interrupts.follow(&self.config, wanted);
    }

    /// What is at `offset` in a BAR. An access belongs to where it begins.
    fn part(&self, bar: BarIndex, offset: u64) -> Part {
        let Some(table) = self.config.table() else {
            return Part::Device;
        };
        let within = |(of, start): (BarIndex, u64), len: usize| {
            let at = usize::try_from(offset.checked_sub(start)?).ok()?;
            (of == bar && at < len).then_some(at)
        };
        if let Some(at) = within(table.table, table_len(table)) {
            Part::Table(at)
        } else if let Some(at) = within(table.pending, pending_len(table)) {
            Part::Pending(at)
        } else {
            Part::Device
        }
    }
}

fn table_len(table: Table) -> usize {
    table.count * ENTRY_SIZE
}

/// A bit for each vector, in words of 64 bits.
fn pending_len(table: Table) -> usize {
    table.count.div_ceil(64) * 8
}

/// What of the BARs is emulated.
fn holes(table: Table) -> [(BarIndex, u64, u64); 2] {
    let (bar, at) = table.table;
    let (pending_bar, pending) = table.pending;
    [
        (bar, at, table_len(table) as u64),
        (pending_bar, pending, pending_len(table) as u64),
    ]
}

impl Function for VfioPci {
    fn read_config(&mut self, at: usize, data: &mut [u8]) {
        self.config.read(&*self.device, at, data);
    }

    fn write_config(&mut self, at: usize, data: &[u8]) {
        self.config.write(&*self.device, at, data);
        self.follow();
    }

    fn bars(&self) -> &[Bar] {
        self.config.bars()
    }

    fn settle(&mut self, number: FunctionNumber) {
        let line = layout::line_gsi(number.device().get());
        self.interrupts.connect(line);
    }

    fn assign_bar(&mut self, bar: BarIndex, address: u64) {
        self.config.assign_bar(bar, address);
        self.follow();
    }

    fn bar(&self, bar: BarIndex) -> Option<u64> {
        self.config.bar(bar)
    }

    fn place(&mut self, bar: BarIndex, at: Option<u64>) {
        if let Some(bars) = &mut self.bars {
            bars.place(bar, at);
        }
    }

    fn read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        match (self.part(bar, offset), self.interrupts.table()) {
            (Part::Table(at), Some(table)) => table.read_table(at, data),
            (Part::Pending(at), Some(table)) => table.read_pending(at, data),
            _ => self.device.read(bar, offset, data),
        }
    }

    fn write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        match (self.part(bar, offset), self.interrupts.table()) {
            (Part::Table(at), Some(table)) => {
                table.write_table(at, data);
                self.follow();
            }
            (Part::Pending(_), _) => {}
            _ if bar == BarIndex::ROM => {}
            _ => self.device.write(bar, offset, data),
        }
    }

    fn describe(&self) -> Option<Identity> {
        let pinned = self.footing.as_ref();
        Some(Identity {
            vendor: self.vendor,
            device: self.id,
            kind: "vfio-pci",
            tag: Some(self.device.name()),
            counters: vec![
                ("interrupt_vectors", self.interrupts.count() as u64),
                ("mapped_bytes", self.bars.as_ref().map_or(0, Bars::mapped)),
                (
                    "pinned_bytes",
                    pinned.map_or(0, |footing| footing.reached.bytes()),
                ),
            ],
        })
    }

    /// The device is reset before it loses the guest's memory: it may be in the middle of writing to it.
    fn stop(&mut self) {
        if self.footing.is_none() {
            return;
        }
        self.interrupts.stop();
        self.bars = None;
        self.device.reset();
        self.footing = None;
    }

    fn release(self: Box<Self>) -> Option<Released> {
        Some(Released::Host(self.device))
    }
}
