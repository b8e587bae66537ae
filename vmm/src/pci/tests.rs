//! A root with functions, probed and moved about by a guest.

use super::*;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::test_driver::{Random, ram};
use crate::devices::virtio::transport::pci::VirtioPci;
use crate::devices::virtio::transport::test_wires::Wires;

const WINDOW: u64 = layout::PCI_WINDOW_START;
const SIZE: u64 = 0x8000;
const ONES: u32 = u32::MAX;
const BAR: u64 = 0x10;
const COMMAND: u64 = 4;

struct Guest {
    root: Arc<Root>,
    wires: Arc<Wires>,
}

impl Guest {
    fn new(functions: usize) -> Self {
        let guest = Guest {
            root: Arc::new(Root::new()),
            wires: Wires::new(),
        };
        for _ in 0..functions {
            guest.add().unwrap();
        }
        guest
    }

    fn add(&self) -> Result<DeviceNumber, Error> {
        self.add_at(None)
    }

    fn add_at(&self, at: Option<FunctionNumber>) -> Result<DeviceNumber, Error> {
        let rng = Box::new(Rng::open().unwrap());
        let (msi, kicks) = (self.wires.clone(), self.wires.clone());
        let function = VirtioPci::new(rng, ram(0x1000), msi, kicks)?;
        let added = self.root.add(Box::new(function), at)?;
        Ok(added.device())
    }

    fn get(&self, device: u64, at: u64) -> u32 {
        let mut bytes = [0xff; 4];
        self.root.ecam().read(device << 15 | at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, device: u64, at: u64, value: u32) {
        self.root
            .ecam()
            .write(device << 15 | at, &value.to_le_bytes());
    }

    /// What a guest reads at an address of the window: a function's number of queues there, or ones.
    fn queues_at(&self, bar: u64) -> u16 {
        let mut bytes = [0xff; 2];
        self.root.window().read(bar + 0x12 - WINDOW, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn port(&self, address: u32, byte: u64, data: &mut [u8]) {
        let ports = self.root.ports();
        ports.write(0, &address.to_le_bytes());
        ports.read(4 + byte, data);
    }
}

#[test]
fn functions_are_found_and_nothing_else() {
    let guest = Guest::new(2);
    assert_eq!(guest.get(0, 0), 0x0008_1b36);
    assert_eq!(guest.get(1, 0), 0x1044_1af4);
    assert_eq!(guest.get(2, 0), 0x1044_1af4);
    for device in 3..32 {
        assert_eq!(guest.get(device, 0), ONES);
    }
    for function in 1..8 {
        assert_eq!(guest.get(1, function << 12), ONES);
    }
    assert_eq!(guest.get(1, 0x100), ONES, "no extended capabilities");
    let found = guest.root.describe();
    let addresses: Vec<_> = found.iter().map(|one| one.number.to_string()).collect();
    assert_eq!(addresses, ["0000:00:01.0", "0000:00:02.0"]);
    assert_eq!(found[0].identity.kind, "virtio-rng");
}

#[test]
fn a_function_that_comes_while_the_guest_runs_takes_no_place_of_its_own() {
    let guest = Guest::new(1);
    // The guest sizes a BAR, which is nowhere meanwhile.
    guest.put(1, BAR, ONES);
    let rng = Box::new(Rng::open().unwrap());
    let (msi, kicks) = (guest.wires.clone(), guest.wires.clone());
    let function = VirtioPci::new(rng, ram(0x1000), msi, kicks).unwrap();
    assert_eq!(
        guest
            .root
            .plug(Box::new(function), DeviceNumber::LAST)
            .unwrap()
            .get(),
        2
    );
    guest.put(1, BAR, WINDOW as u32);
    assert_eq!(guest.wires.kicks_at(), [WINDOW + 0x3000]);
    assert_eq!((guest.get(2, BAR), guest.get(2, COMMAND) & 2), (0, 0));
    // Then it gives the newcomer a place.
    guest.put(2, BAR, (WINDOW + SIZE) as u32);
    guest.put(2, COMMAND, 2);
    assert_eq!(guest.queues_at(WINDOW + SIZE), 1);
}

#[test]
fn a_device_has_as_many_functions_as_it_is_given_and_they_go_together() {
    let guest = Guest::new(1);
    let device = DeviceNumber::from_bits(7);
    for number in [0, 3] {
        let at = FunctionNumber::from_bits(device, number);
        guest.add_at(Some(at)).unwrap();
        assert!(guest.add_at(Some(at)).is_err(), "somebody is there");
    }
    let function = |number: u64| guest.get(7, number << 12 | 0xc);
    assert_eq!((function(0), function(3)), (0x80_0000, 0));
    assert_eq!((function(1), guest.get(1, 0xc)), (ONES, 0));
    let mut byte = [0];
    guest.root.ecam().read(7 << 15 | 0xe, &mut byte);
    assert_eq!(byte, [0x80]);
    guest.root.ecam().read(7 << 15 | 0xf, &mut byte);
    assert_eq!(byte, [0]);
    let found = guest.root.describe();
    assert_eq!(found[2].number.to_string(), "0000:00:07.3");
    assert_eq!(guest.root.remove(device).len(), 2);
    assert_eq!(guest.wires.kicks_at().len(), 1);
}

#[test]
fn a_function_that_goes_leaves_its_place_to_the_next() {
    let guest = Guest::new(3);
    let function = guest.root.remove(DeviceNumber::from_bits(2));
    assert_eq!(function.len(), 1);
    assert_eq!(guest.get(2, 0), ONES);
    assert_eq!(guest.queues_at(WINDOW + SIZE), 0xffff);
    assert_eq!(guest.wires.kicks_at().len(), 2);
    drop(function);
    assert!(guest.root.remove(DeviceNumber::from_bits(2)).is_empty());
    assert!(guest.root.remove(DeviceNumber::HOST_BRIDGE).is_empty());
    assert_eq!(guest.add().unwrap().get(), 2);
    assert_eq!(guest.queues_at(WINDOW + SIZE), 1);
}

#[test]
fn a_device_goes_on_the_next_bus_where_it_was_on_the_last() {
    let guest = Guest::new(3);
    drop(guest.root.remove(DeviceNumber::from_bits(1)));
    guest.root.stop();
    let released = guest.root.release();
    let numbers: Vec<_> = released.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [2, 3].map(|n| DeviceNumber::from_bits(n).into()));
    let next = Guest::new(0);
    for number in numbers {
        assert_eq!(next.add_at(Some(number)).unwrap(), number.device());
    }
    assert!(matches!(
        next.add_at(Some(DeviceNumber::from_bits(3).into())),
        Err(Error::BusFull)
    ));
    assert_eq!(next.add().unwrap().get(), 1, "the gap is the next one's");
}

#[test]
fn ports_reach_what_the_ecam_does() {
    let guest = Guest::new(1);
    let mut word = [0xff; 4];
    guest.port(0x8000_0800, 0, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x1044_1af4);
    let mut half = [0xff; 2];
    guest.port(0x8000_0800, 2, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x1044);
    // Off, another bus, another function, another device.
    for address in [0x0000_0800, 0x8001_0800, 0x8000_0900, 0x8000_1000] {
        let mut word = [0xff; 4];
        guest.port(address, 0, &mut word);
        assert_eq!(word, [0xff; 4], "{address:#x}");
    }
    let ports = guest.root.ports();
    ports.write(0, &0x8000_0804u32.to_le_bytes());
    let mut word = [0; 4];
    ports.read(0, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x8000_0804);
    // Only whole words change the address.
    ports.write(0, &[0]);
    ports.write(1, &[0; 2]);
    ports.write(0, &[0; 8]);
    ports.read(0, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x8000_0804);
}

#[test]
fn a_bar_moves_within_the_window_and_kicks_follow() {
    let guest = Guest::new(2);
    assert_eq!(u64::from(guest.get(1, BAR)), WINDOW);
    assert_eq!(u64::from(guest.get(2, BAR)), WINDOW + SIZE);
    assert_eq!(
        guest.wires.kicks_at(),
        [WINDOW + 0x3000, WINDOW + SIZE + 0x3000]
    );
    let elsewhere = WINDOW + 0x10_0000;
    guest.put(1, BAR, elsewhere as u32);
    assert_eq!(guest.queues_at(elsewhere), 1);
    assert_eq!(guest.queues_at(WINDOW), 0xffff);
    assert_eq!(
        guest.wires.kicks_at(),
        [WINDOW + SIZE + 0x3000, elsewhere + 0x3000]
    );
    // Off and on.
    guest.put(1, COMMAND, 0);
    assert_eq!(guest.queues_at(elsewhere), 0xffff);
    assert_eq!(guest.wires.kicks_at(), [WINDOW + SIZE + 0x3000]);
    guest.put(1, COMMAND, 2);
    assert_eq!(guest.queues_at(elsewhere), 1);
    // Sizing with decoding on, as careless drivers do.
    guest.put(1, BAR, ONES);
    assert_eq!(u64::from(guest.get(1, BAR)), 0x1_0000_0000 - SIZE);
    guest.put(1, BAR, elsewhere as u32);
    assert_eq!(guest.queues_at(elsewhere), 1);
}

#[test]
fn a_bar_outside_of_the_window_or_on_another_is_nowhere() {
    let guest = Guest::new(2);
    let end = WINDOW + layout::PCI_WINDOW_SIZE;
    for place in [
        0,
        0x10_0000,
        WINDOW - SIZE,
        end,
        end - SIZE / 2,
        layout::ECAM_START,
        u64::from(layout::IOAPIC),
        u64::from(layout::LOCAL_APIC),
        0xffff_8000,
        WINDOW + SIZE,
        WINDOW + SIZE + 8,
    ] {
        guest.put(1, BAR, place as u32);
        let kicks = guest.wires.kicks_at();
        if place == end - SIZE / 2 {
            // The lower bits cannot be written, so it is the last place of the window.
            assert_eq!(kicks, [WINDOW + SIZE + 0x3000, end - SIZE + 0x3000]);
        } else {
            assert_eq!(kicks, [WINDOW + SIZE + 0x3000], "{place:#x}");
        }
        assert_eq!(guest.queues_at(WINDOW + SIZE), 1, "the other is there");
    }
    guest.put(1, BAR, WINDOW as u32);
    assert_eq!(guest.queues_at(WINDOW), 1);
}

#[test]
fn an_access_over_a_bar_s_end_touches_nothing() {
    let guest = Guest::new(2);
    let mut bytes = [0xff; 8];
    guest.root.window().read(SIZE - 4, &mut bytes);
    assert_eq!(bytes, [0xff; 8]);
    guest.root.window().read(u64::MAX, &mut bytes);
    guest.root.window().write(SIZE - 4, &bytes);
    guest.root.window().write(u64::MAX, &bytes);
    guest.root.ecam().write(layout::ECAM_SIZE - 1, &bytes);
}

#[test]
fn a_bus_has_31_devices() {
    let guest = Guest::new(31);
    assert!(matches!(guest.add(), Err(Error::BusFull)));
    assert_eq!(guest.root.describe().len(), 31);
    assert_eq!(guest.wires.kicks_at().len(), 31);
}

#[test]
fn anything_anywhere() {
    let guest = Guest::new(4);
    let mut random = Random::new(5);
    let (ecam, ports, window) = (guest.root.ecam(), guest.root.ports(), guest.root.window());
    for _ in 0..20_000 {
        let len = [1, 2, 4, 8][random.below(4) as usize];
        let mut data = random.next().to_le_bytes();
        if random.one_in(3) {
            // A place for a BAR that is near others.
            let place = WINDOW + SIZE * random.below(6);
            data[..4].copy_from_slice(&(place as u32).to_le_bytes());
        }
        let data = &mut data[..len];
        let config = random.below(6) << 15 | random.below(0x60);
        match random.below(6) {
            0 => ecam.write(config, data),
            1 => ecam.write(config & !0xffff | 1 << 15 | BAR, data),
            2 => ecam.read(config, data),
            3 => ports.write(random.below(8), data),
            4 => window.write(random.below(SIZE * 6), data),
            _ => window.read(random.next() >> random.below(64), data),
        }
        // No two BARs in one place; the wires would have noticed two kicks.
        assert!(guest.wires.kicks_at().len() <= 4);
    }
    for device in 1..5u64 {
        guest.put(device, COMMAND, 0);
    }
    assert!(guest.wires.kicks_at().is_empty());
    for device in 1..5u64 {
        guest.put(device, BAR, (WINDOW + SIZE * device) as u32);
        guest.put(device, COMMAND, 2);
        assert_eq!(guest.queues_at(WINDOW + SIZE * device), 1);
    }
    guest.root.stop();
}
