//! The registers of a virtio device on PCI (virtio 1.2, 4.1.4).

use crate::mmio::{self, Width};
use crate::outcome::{Outcome, becomes, is};
use crate::pci::{CAP_MSIX, Function};

const VENDOR: u16 = 0x1af4;
/// A modern device's id is its type behind this (4.1.2.1).
const DEVICE_ID: u16 = 0x1040;
const CAP_VENDOR: u8 = 0x09;

/// VIRTIO_MSI_NO_VECTOR.
pub const NO_VECTOR: u64 = 0xffff;

/// The device status (2.1).
pub mod status {
    pub const ACKNOWLEDGE: u64 = 1;
    pub const DRIVER: u64 = 2;
    pub const DRIVER_OK: u64 = 4;
    pub const FEATURES_OK: u64 = 8;
    pub const NEEDS_RESET: u64 = 64;
    /// What a driver that works has set.
    pub const RUNNING: u64 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

/// A register of the common configuration (4.1.4.3), and the one size that it may be accessed by.
#[derive(Clone, Copy, Debug)]
pub struct Register(pub u64, pub Width);

pub const FEATURE_SELECT: Register = Register(0x00, Width::Four);
pub const FEATURE: Register = Register(0x04, Width::Four);
pub const DRIVER_FEATURE_SELECT: Register = Register(0x08, Width::Four);
pub const DRIVER_FEATURE: Register = Register(0x0c, Width::Four);
pub const CONFIG_VECTOR: Register = Register(0x10, Width::Two);
pub const QUEUE_COUNT: Register = Register(0x12, Width::Two);
pub const STATUS: Register = Register(0x14, Width::One);
pub const QUEUE_SELECT: Register = Register(0x16, Width::Two);
pub const QUEUE_SIZE: Register = Register(0x18, Width::Two);
pub const QUEUE_VECTOR: Register = Register(0x1a, Width::Two);
pub const QUEUE_ENABLE: Register = Register(0x1c, Width::Two);
pub const QUEUE_NOTIFY_OFFSET: Register = Register(0x1e, Width::Two);
pub const QUEUE_DESCRIPTORS: Register = Register(0x20, Width::Four);
pub const QUEUE_DRIVER: Register = Register(0x28, Width::Four);
pub const QUEUE_DEVICE: Register = Register(0x30, Width::Four);

impl Register {
    /// The register of the upper half of a 64-bit field.
    pub const fn upper(self) -> Register {
        Register(self.0 + 4, self.1)
    }
}

/// All that a driver can write of the selected queue.
pub const QUEUE_REGISTERS: [Register; 9] = [
    QUEUE_SIZE,
    QUEUE_VECTOR,
    QUEUE_ENABLE,
    QUEUE_DESCRIPTORS,
    QUEUE_DESCRIPTORS.upper(),
    QUEUE_DRIVER,
    QUEUE_DRIVER.upper(),
    QUEUE_DEVICE,
    QUEUE_DEVICE.upper(),
];

/// `cfg_type` of `struct virtio_pci_cap` (4.1.4).
#[derive(Clone, Copy)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Window = 5,
}

/// Where a device's registers are.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Its PCI function.
    pub function: Function,
    /// The common configuration.
    pub common: u64,
    /// The ISR status.
    pub isr: u64,
    /// The device configuration.
    pub config: u64,
    /// The notifications, and how far two queues' are apart.
    pub notify: u64,
    notify_step: u64,
    /// The MSI-X table.
    pub table: u64,
    /// The number of MSI-X vectors.
    pub vectors: u64,
    /// The capability that is a window to the BAR (4.1.4.9), in configuration space.
    pub window: u64,
}

impl Device {
    /// The first device of this type.
    pub fn find(kind: u16) -> Option<Self> {
        let function = Function::find(VENDOR, DEVICE_ID + kind)?;
        let bar = function.bar();
        let capability = |structure: Structure| {
            function
                .capabilities(CAP_VENDOR)
                .find(|at| function.get(at + 3, Width::One) == structure as u64)
        };
        let place = |structure| {
            let at = capability(structure)?;
            Some(bar + function.get(at + 8, Width::Four))
        };
        let msix = function.capabilities(CAP_MSIX).next()?;
        Some(Device {
            function,
            common: place(Structure::Common)?,
            isr: place(Structure::Isr)?,
            config: place(Structure::Device)?,
            notify: place(Structure::Notify)?,
            notify_step: function.get(capability(Structure::Notify)? + 16, Width::Four),
            table: bar + (function.get(msix + 4, Width::Four) & !7),
            vectors: (function.get(msix + 2, Width::Two) & 0x7ff) + 1,
            window: capability(Structure::Window)?,
        })
    }

    /// Reads a register of the common configuration.
    pub fn get(&self, Register(at, width): Register) -> u64 {
        mmio::read(self.common + at, width)
    }

    /// Writes a register of the common configuration.
    pub fn put(&self, Register(at, width): Register, value: u64) {
        mmio::write(self.common + at, width, value);
    }

    /// Writes both halves of a 64-bit field.
    pub fn put_address(&self, register: Register, address: u64) {
        self.put(register, address & 0xffff_ffff);
        self.put(register.upper(), address >> 32);
    }

    /// Where a queue with this `queue_notify_off` is kicked (4.1.4.4).
    pub fn kick_register(&self, offset: u64) -> u64 {
        self.notify + offset * self.notify_step
    }

    /// Resets it, and waits until it is (4.1.4.3.2).
    pub fn reset(&self) -> Outcome {
        self.put(STATUS, 0);
        becomes("the status after a reset", 0, || self.get(STATUS))
    }

    /// Waits until it says DEVICE_NEEDS_RESET (2.1.2).
    pub fn needs_reset(&self) -> Outcome {
        let asks = || self.get(STATUS) & status::NEEDS_RESET;
        becomes("NEEDS_RESET", status::NEEDS_RESET, asks)
    }

    /// It works, and does not ask for a reset.
    pub fn runs(&self) -> Outcome {
        is("the status", self.get(STATUS), status::RUNNING)
    }
}
