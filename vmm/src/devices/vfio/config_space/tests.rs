//! A device that is bytes, and a guest that reads and writes its configuration space.

use std::cell::RefCell;

use super::*;
use crate::devices::virtio::test_driver::Random;

/// Like a disk with one BAR of 64 bits, one of 32, one for ports, and a ROM.
struct Fake(RefCell<Vec<u8>>);

const MSI: usize = 0x50;
const POWER: usize = 0x40;
const MSIX: usize = 0x70;
const EXPRESS: usize = 0x80;

impl Fake {
    fn new() -> Self {
        let mut bytes = vec![0; SIZE];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0, &0x0010_1b36u32.to_le_bytes());
        // Decoding, as long as it is somebody's; capabilities.
        put(COMMAND, &[2, 0, 0x10, 0]);
        put(HEADER_TYPE, &[0x80]);
        put(BARS, &(0xfe00_0000u32 | 4).to_le_bytes());
        put(BARS + 8, &0xfd00_0000u32.to_le_bytes());
        put(BARS + 12, &0xc001u32.to_le_bytes());
        put(0x34, &[POWER as u8]);
        put(LINE, &[11, 1]);
        put(POWER, &[1, MSI as u8, 3, 0, 3, 1]);
        // 64 bits, maskable, up to four messages.
        put(MSI, &[5, MSIX as u8, 0x84, 1]);
        put(MSIX, &[0x11, EXPRESS as u8, 9, 0x80]);
        put(MSIX + 4, &0x2000u32.to_le_bytes());
        put(MSIX + 8, &0x3000u32.to_le_bytes());
        put(EXPRESS, &[0x10, 0, 2, 0]);
        // Alternative routing ids, then error reporting, then a resizable BAR.
        let header = |id: u32, next: u32| (id | 1 << 16 | next << 20).to_le_bytes();
        put(0x100, &header(0x0e, 0x140));
        put(0x104, &[0xaa; 4]);
        put(0x140, &header(0x01, 0x180));
        put(0x144, &[0xbb; 4]);
        put(0x180, &header(0x15, 0));
        put(0x184, &[0xcc; 12]);
        Fake(RefCell::new(bytes))
    }

    fn byte(&self, at: usize) -> u8 {
        self.0.borrow()[at]
    }
}

impl Real for Fake {
    fn size(&self) -> usize {
        SIZE
    }

    fn region_size(&self, bar: BarIndex) -> u64 {
        match bar.get() {
            0 => 0x4000,
            2 => 0x1000,
            3 => 0x20,
            6 => 0x1_0000,
            _ => 0,
        }
    }

    fn read(&self, at: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.0.borrow()[at..at + data.len()]);
    }

    fn write(&self, at: usize, data: &[u8]) {
        self.0.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }
}

struct Guest {
    real: Fake,
    space: ConfigSpace,
}

impl Guest {
    fn new() -> Self {
        let real = Fake::new();
        let space = ConfigSpace::new(&real, true);
        Guest { real, space }
    }

    fn get(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.space.read(&self.real, at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&mut self, at: usize, value: u32) {
        self.space.write(&self.real, at, &value.to_le_bytes());
    }

    fn put_word(&mut self, at: usize, value: u16) {
        self.space.write(&self.real, at, &value.to_le_bytes());
    }

    fn wanted(&self) -> Wanted {
        self.space.wanted(self.real.byte(COMMAND + 1))
    }
}

fn bar(number: u32) -> BarIndex {
    BarIndex::new(number).unwrap()
}

#[test]
fn bars_are_sized_and_moved_without_the_device_noticing() {
    let mut guest = Guest::new();
    let sizes: Vec<_> = guest
        .space
        .bars()
        .iter()
        .map(|bar| (bar.index.get(), bar.size, bar.bits))
        .collect();
    assert_eq!(
        sizes,
        [
            (0, 0x4000, Bits::SixtyFour),
            (2, 0x1000, Bits::ThirtyTwo),
            (6, 0x1_0000, Bits::ThirtyTwo)
        ]
    );
    let before = guest.real.0.borrow().clone();
    assert_eq!(guest.get(BARS), 4, "no place yet");
    guest.put(BARS, u32::MAX);
    guest.put(BARS + 4, u32::MAX);
    assert_eq!(
        (guest.get(BARS), guest.get(BARS + 4)),
        (0xffff_c004, u32::MAX)
    );
    guest.put(BARS + 12, u32::MAX);
    assert_eq!(guest.get(BARS + 12), 0, "no ports");
    guest.put(0x30, 0xffff_f801);
    assert_eq!(guest.get(0x30), 0xffff_0001);
    guest.space.assign_bar(bar(0), 0x20_0000_0000);
    assert_eq!(guest.get(BARS + 4), 0x20);
    assert_eq!(guest.space.bar(bar(0)), Some(0x20_0000_0000));
    guest.put_word(COMMAND, 0);
    assert_eq!(guest.space.bar(bar(0)), None);
    assert_eq!(*guest.real.0.borrow(), before);
}

#[test]
fn the_device_decodes_and_is_awake_whatever_its_guest_says() {
    let mut guest = Guest::new();
    guest.put_word(COMMAND, 0x0407);
    assert_eq!(guest.get(COMMAND) & 0xffff, 0x0406, "no ports");
    assert_eq!(guest.real.byte(COMMAND), 6, "it may reach memory now");
    guest.put_word(COMMAND, 0);
    assert_eq!(guest.real.byte(COMMAND), 2);
    assert_eq!(guest.get(POWER + 4) & 3, 0);
    guest.put_word(POWER + 4, 3);
    assert_eq!(guest.get(POWER + 4) & 3, 3);
    assert_eq!(guest.real.byte(POWER + 4), 3, "as it was");
    assert_eq!(guest.get(HEADER_TYPE) & 0x80, 0, "one function");
}

#[test]
fn what_changes_the_bus_is_hidden_and_the_list_leads_past_it() {
    let mut guest = Guest::new();
    let mut seen = vec![0; SIZE];
    guest.space.read(&guest.real, 0, &mut seen);
    let ids: Vec<_> = capabilities::list_extended(&seen)
        .iter()
        .map(|capability| (capability.id, capability.at))
        .collect();
    assert_eq!(ids, [(0, 0x100), (1, 0x140)]);
    assert_eq!((guest.get(0x104), guest.get(0x184)), (0, 0));
    assert_eq!(guest.get(0x144), 0xbbbb_bbbb);
    guest.put(0x184, 7);
    assert_eq!(guest.real.byte(0x184), 0xcc);
    let ids: Vec<_> = capabilities::list(&seen)
        .iter()
        .map(|capability| capability.id)
        .collect();
    assert_eq!(ids, [1, 5, 0x11, 0x10]);
}

#[test]
fn a_guest_is_interrupted_as_it_wants() {
    let mut guest = Guest::new();
    assert_eq!(guest.wanted(), Wanted::Nothing, "nothing decodes yet");
    guest.put_word(COMMAND, 2);
    assert_eq!(guest.wanted(), Wanted::Line);
    guest.put_word(COMMAND, 0x402);
    assert_eq!(guest.wanted(), Wanted::Nothing);
    guest.put(MSI + 4, 0xfee0_1003);
    guest.put_word(MSI + 12, 0x41);
    guest.put(MSI + 16, 2);
    guest.put_word(MSI + 2, 0x21);
    assert_eq!(guest.wanted(), Wanted::Msi);
    let message = guest.space.msi_message();
    assert_eq!(message, Some((0xfee0_1000, 0x41, 4, 2)));
    assert_eq!(guest.space.messages(), 4);
    guest.put_word(MSIX + 2, 0xc000);
    assert_eq!(guest.wanted(), Wanted::Msix(0xc009));
    assert_eq!(guest.real.byte(MSIX + 3), 0x80, "that is VFIO's to do");
    let table = guest.space.table().unwrap();
    assert_eq!((table.count, table.table), (10, (bar(0), 0x2000)));
    let real = Fake::new();
    let lineless = ConfigSpace::new(&real, false);
    let mut pin = [0xff];
    lineless.read(&real, PIN, &mut pin);
    assert_eq!(pin, [0]);
}

#[test]
fn accesses_of_all_sizes_and_offsets_harm_nothing() {
    let mut random = Random::new(0x5eed);
    let mut guest = Guest::new();
    for _ in 0..100_000 {
        let at = match random.below(8) {
            0 => random.next() as usize >> random.below(64),
            1 => SIZE - random.below(9) as usize,
            _ => random.below(0x200) as usize,
        };
        let bytes = random.next().to_le_bytes();
        let len = random.below(9) as usize;
        if random.below(2) == 0 {
            guest.space.write(&guest.real, at, &bytes[..len]);
        } else {
            let mut data = bytes;
            guest.space.read(&guest.real, at, &mut data[..len]);
        }
        assert_ne!(guest.real.byte(COMMAND) & 2, 0, "it decodes");
        assert_eq!(guest.real.byte(POWER + 4) & 3, 3, "as it was");
        guest.wanted();
        for index in 0..6 {
            let found = guest.space.bars().iter().find(|b| b.index == bar(index));
            let at = guest.space.bar(bar(index));
            assert!(at.is_none_or(|at| at.is_multiple_of(found.unwrap().size)));
        }
    }
}

#[test]
fn a_device_that_is_all_ones_has_nothing() {
    let real = Fake(RefCell::new(vec![0xff; SIZE]));
    let space = ConfigSpace::new(&real, true);
    assert!(space.bars().iter().all(|bar| bar.index == BarIndex::ROM));
    assert_eq!(space.table(), None);
}
