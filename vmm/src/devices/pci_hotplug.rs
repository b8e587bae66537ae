//! The registers by which a guest learns that PCI devices have come or are to go, and lets go of them. The guest's side is AML of ours
//! (`arch::x86_64::acpi::pci_hotplug`); the layout is nobody else's business.
//!
//! ```text
//! 0  COME   read: a bit for each device number where one has come since this was last read
//! 4  GO     read: a bit for each device that is to go, since this was last read
//! 8  EJECT  write: a bit for each device that the guest has let go of
//! ```
//!
//! Words of four bytes, aligned; anything else reads as zero and writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus;
use crate::pci::{DeviceNumber, Function, Root};

/// See above.
pub const COME: u16 = 0;
/// See above.
pub const GO: u16 = 4;
/// See above.
pub const EJECT: u16 = 8;
/// The registers' length in bytes.
pub const REGISTERS_SIZE: u16 = 12;

/// Hears of a device that the guest has let go of, and that is off the bus. It is called by a vCPU, and must not keep it.
pub type OnEject = Box<dyn Fn(DeviceNumber, Vec<Box<dyn Function>>) + Send + Sync>;

/// The registers of one bus.
pub struct PciHotplug {
    bus: Arc<Root>,
    come: AtomicU32,
    go: AtomicU32,
    /// The interrupt that has the guest read them.
    event: EventFd,
    on_eject: OnEject,
}

impl PciHotplug {
    /// The registers of `bus`, with the interrupt `event`.
    pub fn new(bus: Arc<Root>, event: EventFd, on_eject: OnEject) -> Self {
        PciHotplug {
            bus,
            come: AtomicU32::new(0),
            go: AtomicU32::new(0),
            event,
            on_eject,
        }
    }

    /// A device has come.
    pub fn announce(&self, number: DeviceNumber) {
        self.tell(&self.come, number);
    }

    /// Asks the guest to let go of a device. It may do so at any later time, or never.
    pub fn ask_for(&self, number: DeviceNumber) {
        self.tell(&self.go, number);
    }

    fn tell(&self, register: &AtomicU32, number: DeviceNumber) {
        register.fetch_or(number.bit(), Ordering::SeqCst);
        // It fails only when the eventfd is full, and then an interrupt is pending anyway.
        let _ = self.event.write(1);
    }

    fn eject(&self, bits: u32) {
        let numbers = DeviceNumber::all().filter(|number| bits & number.bit() != 0);
        for number in numbers {
            let functions = self.bus.remove(number);
            if !functions.is_empty() {
                (self.on_eject)(number, functions);
            }
        }
    }
}

impl bus::Device for PciHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let register = match u16::try_from(offset) {
            Ok(COME) => &self.come,
            Ok(GO) => &self.go,
            _ => return,
        };
        *word = register.swap(0, Ordering::SeqCst).to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(EJECT), Ok(word)) = (u16::try_from(offset), data.try_into()) {
            self.eject(u32::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::bus::Device as _;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::test_driver::ram;
    use crate::devices::virtio::transport::pci::VirtioPci;
    use crate::devices::virtio::transport::test_wires::Wires;

    struct Bench {
        registers: PciHotplug,
        event: EventFd,
        ejected: Arc<Mutex<Vec<DeviceNumber>>>,
    }

    impl Bench {
        fn new() -> Self {
            let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let ejected: Arc<Mutex<Vec<_>>> = Arc::default();
            let heard = ejected.clone();
            let on_eject: OnEject = Box::new(move |number, mut functions| {
                functions.iter_mut().for_each(|function| function.stop());
                heard.lock().unwrap().push(number);
            });
            let root = Arc::new(Root::new());
            Bench {
                registers: PciHotplug::new(root, event.try_clone().unwrap(), on_eject),
                event,
                ejected,
            }
        }

        fn plug(&self) -> DeviceNumber {
            let (msi, kicks) = (Wires::new(), Wires::new());
            let rng = Box::new(Rng::open().unwrap());
            let function = VirtioPci::new(rng, ram(0x1000), msi, kicks).unwrap();
            let added = self.registers.bus.add(Box::new(function), None);
            added.unwrap().device()
        }

        fn read(&self, register: u16) -> u32 {
            let mut word = [0xff; 4];
            self.registers.read(register.into(), &mut word);
            u32::from_le_bytes(word)
        }
    }

    #[test]
    fn what_comes_and_goes_is_told_once() {
        let bench = Bench::new();
        let (first, second) = (bench.plug(), bench.plug());
        bench.registers.announce(first);
        bench.registers.announce(second);
        assert_eq!(bench.event.read().unwrap(), 2);
        assert_eq!(bench.read(COME), 0b110);
        assert_eq!(bench.read(COME), 0);
        bench.registers.ask_for(second);
        assert_eq!(bench.event.read().unwrap(), 1);
        assert_eq!(bench.read(GO), 0b100);
        bench.registers.write(EJECT.into(), &0b100u32.to_le_bytes());
        assert_eq!(*bench.ejected.lock().unwrap(), [second]);
        assert!(!bench.registers.bus.has(second));
        assert_eq!(bench.plug(), second, "its place is free again");
    }

    #[test]
    fn a_guest_ejects_what_is_there_and_nothing_else() {
        let bench = Bench::new();
        let number = bench.plug();
        for (offset, data) in [
            (EJECT.into(), &[0xff][..]),
            (EJECT.into(), &[0xff; 8]),
            (GO.into(), &[0xff; 4]),
            (u64::MAX, &[0xff; 4]),
        ] {
            bench.registers.write(offset, data);
            bench.registers.read(offset, &mut [0; 3]);
        }
        assert!(bench.registers.bus.has(number));
        bench.registers.write(EJECT.into(), &[0xff; 4]);
        bench.registers.write(EJECT.into(), &[0xff; 4]);
        assert_eq!(*bench.ejected.lock().unwrap(), [number]);
        assert!(bench.registers.bus.has(DeviceNumber::HOST_BRIDGE));
    }
}
