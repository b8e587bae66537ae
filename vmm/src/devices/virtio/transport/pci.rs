//! Virtio over PCI (virtio 1.2, 4.1): modern only, one 32-bit BAR, MSI-X.
//!
//! ```text
//! BAR 0  0x0000  common configuration      4.1.4.3
//!        0x1000  ISR status, always 0      4.1.4.5 (only for INTx, which is not here)
//!        0x2000  device configuration      4.1.4.6
//!        0x3000  notifications, 4 bytes a queue: ioeventfds, so that a kick never gets here
//!        0x4000  MSI-X table
//!        0x5000  MSI-X pending bits
//! ```

use std::sync::Arc;

use super::status::{Machine, NO_VECTOR, QueueConfig};
use crate::devices::virtio::{Device, GuestMemory, Interrupt, Kind};
use crate::irq::{IoEvents, Msi};
use crate::pci::config_space::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};
use crate::pci::{self, Bar, BarIndex, Bits, Function, Released};

const BAR_SIZE: u32 = 0x8000;
const BARS: [Bar; 1] = [Bar {
    index: BarIndex::FIRST,
    size: BAR_SIZE as u64,
    bits: Bits::ThirtyTwo,
}];
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const END: u64 = 0x6000;
/// The distance of two queues' notification registers.
const NOTIFY_STEP: u32 = 4;

const VENDOR: u16 = 0x1af4;
/// A modern device's id is its type behind this (4.1.2.1).
const DEVICE_ID: u16 = 0x1040;
/// The id of vendor-specific capabilities.
const CAP_VENDOR: u8 = 0x09;

/// `cfg_type` of `struct virtio_pci_cap` (4.1.4).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    /// A window to the BAR by configuration space (4.1.4.9).
    Window = 5,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    machine: Machine,
    config: ConfigSpace,
    msix: Msix,
    /// Where the MSI-X capability begins.
    msix_at: usize,
    /// Where the window's capability begins.
    window_at: usize,
    ioevents: Arc<dyn IoEvents>,
    /// Where the kicks are registered.
    kicks_at: Option<u64>,
    feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

impl VirtioPci {
    /// A function around `device`.
    ///
    /// # Errors
    /// When its eventfds cannot be had.
    pub fn new(
        device: Box<dyn Device>,
        memory: Arc<GuestMemory>,
        msi: Arc<dyn Msi>,
        ioevents: Arc<dyn IoEvents>,
    ) -> Result<Self, pci::Error> {
        let kind = device.kind();
        let vectors = device.queue_sizes().len() + 1;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_ID + kind as u16,
            revision: 1,
            class: class(kind),
        })
        .with_bar(BAR_SIZE);
        let mut body = vec![(vectors - 1) as u8, 0];
        body.extend((TABLE as u32).to_le_bytes());
        body.extend((PENDING as u32).to_le_bytes());
        let msix_at = config.add_capability(msix::CAPABILITY, &body);
        config.allow(msix_at + 3, &[msix::CONTROL_WRITABLE]);
        let mut add = |structure, offset, size, more: &[u8]| {
            config.add_capability(CAP_VENDOR, &capability(structure, offset, size, more))
        };
        add(Structure::Common, COMMON, 0x40, &[]);
        add(Structure::Isr, ISR, 4, &[]);
        add(Structure::Device, DEVICE, 0x1000, &[]);
        add(
            Structure::Notify,
            NOTIFY,
            0x1000,
            &NOTIFY_STEP.to_le_bytes(),
        );
        let window_at = add(Structure::Window, 0, 0, &[0; 4]);
        // BAR, offset, length, data.
        config.allow(window_at + 4, &[0xff]);
        config.allow(window_at + 8, &[0xff; 12]);
        Ok(VirtioPci {
            machine: Machine::new(device, memory)?,
            config,
            msix: Msix::new(msi, vectors)?,
            msix_at,
            window_at,
            ioevents,
            kicks_at: None,
            feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
        })
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let machine = &self.machine;
        let queue = machine
            .queue(self.queue_select)
            .copied()
            .unwrap_or(QueueConfig::ABSENT);
        let value: u32 = match offset {
            0x00 => self.feature_select,
            0x04 => half(machine.offered(), self.feature_select),
            0x08 => self.driver_feature_select,
            0x0c => half(machine.taken(), self.driver_feature_select),
            0x10 => machine.config_vector.into(),
            0x12 => machine.queue_count().into(),
            0x14 => machine.status().into(),
            0x15 => machine.config_generation().into(),
            0x16 => self.queue_select.into(),
            0x18 => queue.size.into(),
            0x1a => queue.vector.into(),
            0x1c => queue.enabled.into(),
            0x1e => self.queue_select.into(),
            0x20 => half(queue.descriptors, 0),
            0x24 => half(queue.descriptors, 1),
            0x28 => half(queue.driver, 0),
            0x2c => half(queue.driver, 1),
            0x30 => half(queue.device, 0),
            0x34 => half(queue.device, 1),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(place, byte)| *place = byte);
    }

    /// A field is written by an access of its own size (4.1.3.1); halves of an address are fields.
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes
            .iter_mut()
            .zip(data)
            .for_each(|(place, byte)| *place = *byte);
        let value = u32::from_le_bytes(bytes);
        let word = value as u16;
        match (offset, data.len()) {
            (0x00, 4) => self.feature_select = value,
            (0x08, 4) => self.driver_feature_select = value,
            (0x0c, 4) => self.machine.take(self.driver_feature_select, value),
            (0x10, 2) => self.machine.config_vector = self.vector(word),
            (0x14, 1) => self.set_status(value as u8),
            (0x16, 2) => self.queue_select = word,
            (0x1a, 2) => {
                let vector = self.vector(word);
                self.queue(|queue| queue.vector = vector);
            }
            (0x18, 2) => self.queue(|queue| queue.size = word),
            (0x1c, 2) if word == 1 => self.queue(|queue| queue.enabled = true),
            (0x20, 4) => self.queue(|queue| set_half(&mut queue.descriptors, 0, value)),
            (0x24, 4) => self.queue(|queue| set_half(&mut queue.descriptors, 1, value)),
            (0x28, 4) => self.queue(|queue| set_half(&mut queue.driver, 0, value)),
            (0x2c, 4) => self.queue(|queue| set_half(&mut queue.driver, 1, value)),
            (0x30, 4) => self.queue(|queue| set_half(&mut queue.device, 0, value)),
            (0x34, 4) => self.queue(|queue| set_half(&mut queue.device, 1, value)),
            _ => {}
        }
    }

    /// Changes the selected queue.
    fn queue(&mut self, change: impl FnOnce(&mut QueueConfig)) {
        self.machine.change_queue(self.queue_select, change);
    }

    /// A vector that does not exist reads back as none (4.1.5.1.2.1).
    fn vector(&self, wanted: u16) -> u16 {
        if self.msix.event(wanted).is_some() {
            wanted
        } else {
            NO_VECTOR
        }
    }

    fn set_status(&mut self, status: u8) {
        let msix = &self.msix;
        let interrupt = |vector| {
            msix.event(vector)
                .map_or_else(Interrupt::none, Interrupt::new)
        };
        self.machine.set_status(status, interrupt);
        if status == 0 {
            (
                self.feature_select,
                self.driver_feature_select,
                self.queue_select,
            ) = (0, 0, 0);
        }
    }

    /// What the window in configuration space looks at: its offset in the BAR, and its length if that is allowed.
    fn window(&self) -> Option<(u64, usize)> {
        let bar = self.config.dword(self.window_at + 4) & 0xff;
        let offset = u64::from(self.config.dword(self.window_at + 8));
        let length = self.config.dword(self.window_at + 12) as usize;
        (bar == 0 && matches!(length, 1 | 2 | 4) && offset < END).then_some((offset, length))
    }

    /// Whether a configuration access covers the window's data.
    fn is_window_data(&self, at: usize) -> bool {
        at == self.window_at + 16
    }
}

impl Function for VirtioPci {
    fn read_config(&mut self, at: usize, data: &mut [u8]) {
        self.config.read(at, data);
        if let Some((offset, length)) = self.window().filter(|_| self.is_window_data(at))
            && let Some(data) = data.get_mut(..length)
        {
            self.read(BarIndex::FIRST, offset, data);
        }
    }

    fn write_config(&mut self, at: usize, data: &[u8]) {
        self.config.write(at, data);
        let control = self.config.dword(self.msix_at) >> 16;
        self.msix.control(control as u16);
        if let Some((offset, length)) = self.window().filter(|_| self.is_window_data(at))
            && let Some(data) = data.get(..length)
        {
            self.write(BarIndex::FIRST, offset, data);
        }
    }

    fn bars(&self) -> &[Bar] {
        &BARS
    }

    fn assign_bar(&mut self, _: BarIndex, address: u64) {
        // The only BAR has 32 bits, and so has what the root has found for it.
        self.config.assign_bar(address as u32);
    }

    fn bar(&self, _: BarIndex) -> Option<u64> {
        self.config.bar()
    }

    fn place(&mut self, _: BarIndex, bar: Option<u64>) {
        if self.kicks_at == bar {
            return;
        }
        for (index, kick) in (0u64..).zip(self.machine.kicks()) {
            let register = |bar: u64| bar + NOTIFY + index * u64::from(NOTIFY_STEP);
            let removed = self
                .kicks_at
                .map(|bar| self.ioevents.remove(kick, register(bar)));
            let added = bar.map(|bar| self.ioevents.add(kick, register(bar)));
            for error in [removed, added]
                .into_iter()
                .flatten()
                .filter_map(Result::err)
            {
                log::warn!(
                    "{}: the kick of queue {index}: {error}",
                    self.machine.name()
                );
            }
        }
        self.kicks_at = bar;
    }

    fn read(&mut self, _: BarIndex, offset: u64, data: &mut [u8]) {
        match offset {
            ..ISR => self.read_common(offset, data),
            DEVICE..NOTIFY => {
                let config = self.machine.config();
                let rest = usize::try_from(offset - DEVICE)
                    .ok()
                    .and_then(|at| config.get(at..));
                data.fill(0);
                data.iter_mut()
                    .zip(rest.unwrap_or_default())
                    .for_each(|(to, from)| *to = *from);
            }
            TABLE..PENDING => self.msix.read_table((offset - TABLE) as usize, data),
            PENDING..END => self.msix.read_pending((offset - PENDING) as usize, data),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, _: BarIndex, offset: u64, data: &[u8]) {
        match offset {
            ..ISR => self.write_common(offset, data),
            DEVICE..NOTIFY => self.machine.write_config((offset - DEVICE) as usize, data),
            // Only the window in configuration space gets here; KVM takes the others.
            NOTIFY..TABLE => self
                .machine
                .kick((offset - NOTIFY) as usize / NOTIFY_STEP as usize),
            TABLE..PENDING => self.msix.write_table((offset - TABLE) as usize, data),
            _ => {}
        }
    }

    fn describe(&self) -> Option<pci::Identity> {
        Some(pci::Identity {
            vendor: VENDOR,
            device: DEVICE_ID + self.machine.kind() as u16,
            kind: self.machine.name(),
            tag: self.machine.tag(),
            counters: self.machine.counters(),
        })
    }

    fn stop(&mut self) {
        self.machine.stop();
    }

    fn release(self: Box<Self>) -> Option<Released> {
        Some(Released::Virtio(self.machine.into_device()))
    }
}

/// Class, subclass and interface, for those who look at a list of devices.
fn class(kind: Kind) -> [u8; 3] {
    match kind {
        Kind::Net => [0x02, 0x00, 0x00],
        Kind::Block | Kind::FileSystem => [0x01, 0x80, 0x00],
        Kind::Balloon | Kind::Memory => [0x05, 0x80, 0x00],
        Kind::Console | Kind::Vsock => [0x07, 0x80, 0x00],
        Kind::Entropy => [0x10, 0x00, 0x00],
    }
}

/// `struct virtio_pci_cap` behind its next pointer, with what follows it.
fn capability(structure: Structure, offset: u64, size: u32, more: &[u8]) -> Vec<u8> {
    /// Its length with id and next pointer.
    const LENGTH: usize = 16;
    let mut body = vec![(LENGTH + more.len()) as u8, structure as u8, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(size.to_le_bytes());
    body.extend(more);
    body
}

/// The lower (0) or upper (1) half of `value`; 0 for halves that it does not have.
fn half(value: u64, index: u32) -> u32 {
    match index {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, index: u32, half: u32) {
    let shift = 32 * index;
    *value = (*value & !(u64::from(u32::MAX) << shift)) | u64::from(half) << shift;
}
