//! A started disk, asked rightly and wrongly.

use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::test_driver::{Buffer, TestQueue, TestTransport, ram};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x10000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ALL: u64 = u64::MAX;

/// A started disk of 16 sectors, each filled with its number.
struct Machine {
    blk: Blk,
    file: tempfile::NamedTempFile,
    driver: TestQueue,
    transport: TestTransport,
}

impl Machine {
    fn new(readonly: bool, features: u64) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for sector in 0..16 {
            file.write_all(&[sector; 512]).unwrap();
        }
        let driver = TestQueue::new(&ram(0x100000), 0x1000, QUEUE_SIZE, true);
        let transport = TestTransport::new();
        let mut blk = Blk::open(file.path(), readonly).unwrap();
        let active = transport.active(blk.features() & features, &[&driver]);
        blk.start(active).unwrap();
        Machine {
            blk,
            file,
            driver,
            transport,
        }
    }

    /// Asks with the given data buffers between header and status; says the status and the used length.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let memory = self.driver.memory.clone();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((STATUS, 1, true));
        let head = self.driver.add(&buffers).unwrap();
        self.driver.kick();
        let (used, len) = self.driver.wait_used();
        assert_eq!(used, head);
        (memory.read_obj(GuestAddress(STATUS)).unwrap(), len)
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.blk.counters();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = &self.driver.memory;
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

#[test]
fn the_configuration_says_what_it_is() {
    let machine = Machine::new(true, ALL);
    let config = machine.blk.config();
    assert_eq!(config[..8], 16u64.to_le_bytes());
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_ne!(machine.blk.features() & F_RO, 0);
    assert_eq!(Machine::new(false, ALL).blk.features() & F_RO, 0);
}

#[test]
fn sectors_are_read_into_scattered_buffers() {
    let mut machine = Machine::new(true, ALL);
    let buffers = [(DATA, 100, true), (DATA + 0x1000, 924, true)];
    assert_eq!(machine.ask(0, 3, &buffers), (OK, 1025));
    assert_eq!(
        machine.bytes(DATA, 101),
        [[3; 100].as_slice(), &[0]].concat()
    );
    let second = machine.bytes(DATA + 0x1000, 925);
    assert_eq!(second, [[3; 412].as_slice(), &[4; 512], &[0]].concat());
    assert_eq!(machine.counter("read_bytes"), 1024);
}

#[test]
fn what_is_written_is_read_again_and_in_the_file() {
    let mut machine = Machine::new(false, ALL);
    let memory = machine.driver.memory.clone();
    memory
        .write_slice(&[0xaa; 1024], GuestAddress(DATA))
        .unwrap();
    let buffers = [(DATA, 1000, false), (DATA + 1000, 24, false)];
    assert_eq!(machine.ask(1, 14, &buffers), (OK, 1));
    assert_eq!(machine.ask(4, 0, &[]), (OK, 1));
    assert_eq!(machine.ask(0, 14, &[(DATA + 0x2000, 512, true)]), (OK, 513));
    assert_eq!(machine.bytes(DATA + 0x2000, 512), [0xaa; 512]);
    let file = std::fs::read(machine.file.path()).unwrap();
    assert_eq!(file.len(), 16 * 512);
    assert_eq!(file[13 * 512..14 * 512], [13; 512]);
    assert_eq!(file[14 * 512..], [0xaa; 1024]);
    assert_eq!(machine.counter("written_bytes"), 1024);
    assert_eq!(machine.counter("flushes"), 1);
}

#[test]
fn many_requests_in_one_kick_are_all_answered() {
    let mut machine = Machine::new(true, ALL);
    let memory = machine.driver.memory.clone();
    for round in 0..500u64 {
        let mut heads = Vec::new();
        for i in 0..40u64 {
            let at = HEADER + 0x20 * i;
            memory.write_obj(0u32, GuestAddress(at)).unwrap();
            let sector = (round + i) % 16;
            memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
            let buffer = DATA + 0x400 * i;
            let buffers = [(at, 16, false), (buffer, 513, true)];
            heads.push(machine.driver.add(&buffers).unwrap());
        }
        machine.driver.kick();
        for head in heads {
            assert_eq!(machine.driver.wait_used(), (head, 513));
        }
        for i in 0..40u64 {
            let sector = ((round + i) % 16) as u8;
            let bytes = machine.bytes(DATA + 0x400 * i, 513);
            assert_eq!(bytes, [[sector; 512].as_slice(), &[OK]].concat());
        }
    }
}

#[test]
fn without_flush_every_write_is_durable_at_once() {
    let mut machine = Machine::new(false, ALL & !F_FLUSH);
    assert_eq!(machine.ask(1, 0, &[(DATA, 512, false)]), (OK, 1));
}

#[test]
fn requests_beyond_the_end_fail_and_nothing_is_written() {
    let mut machine = Machine::new(false, ALL);
    let before = std::fs::read(machine.file.path()).unwrap();
    for (sector, len) in [
        (16, 512),
        (15, 1024),
        (0, 511),
        (0, 17 * 512),
        (u64::MAX, 512),
        (1 << 55, 512),
        ((1 << 55) - 1, 1024),
    ] {
        assert_eq!(machine.ask(0, sector, &[(DATA, len, true)]), (IOERR, 0));
        assert_eq!(machine.ask(1, sector, &[(DATA, len, false)]), (IOERR, 1));
    }
    assert_eq!(std::fs::read(machine.file.path()).unwrap(), before);
    assert!(!machine.transport.faulted());
    assert_eq!(machine.counter("errors"), 14);
}

#[test]
fn a_readonly_disk_is_not_written_to() {
    let mut machine = Machine::new(true, ALL);
    assert_eq!(machine.ask(1, 0, &[(DATA, 512, false)]), (IOERR, 1));
    assert_eq!(machine.ask(4, 0, &[]), (OK, 1), "nothing to flush");
    assert_eq!(std::fs::read(machine.file.path()).unwrap()[..512], [0; 512]);
}

#[test]
fn the_id_fills_what_room_there_is() {
    let mut machine = Machine::new(true, ALL);
    assert_eq!(machine.ask(8, 0, &[(DATA, 20, true)]), (OK, 21));
    let id = machine.bytes(DATA, 20);
    assert!(id[..16].iter().all(u8::is_ascii_hexdigit), "{id:?}");
    assert_eq!(machine.ask(8, 0, &[(DATA, 4, true)]), (OK, 5));
    assert_eq!(machine.ask(8, 0, &[(DATA, 512, true)]), (OK, 20));
    assert_eq!(machine.ask(8, 0, &[]), (OK, 1));
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut machine = Machine::new(false, ALL);
    for kind in [2, 3, 5, 11, 13, 0x8000_0000, u32::MAX] {
        assert_eq!(machine.ask(kind, 0, &[(DATA, 512, true)]).0, UNSUPP);
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_of_the_request() {
    let mut machine = Machine::new(true, ALL);
    machine.file.as_file().set_len(512).unwrap();
    assert_eq!(machine.ask(0, 0, &[(DATA, 1024, true)]), (IOERR, 0));
    assert_eq!(machine.ask(0, 0, &[(DATA, 512, true)]), (OK, 513));
}

#[test]
fn chains_that_are_no_requests_ask_for_a_reset() {
    let chains: [&[Buffer]; 4] = [
        // No room for a status, a short header, no header, a buffer outside of RAM.
        &[(HEADER, 16, false), (DATA, 512, false)],
        &[(HEADER, 15, false), (STATUS, 1, true)],
        &[(STATUS, 513, true)],
        &[(HEADER, 16, false), (1 << 32, 512, true), (STATUS, 1, true)],
    ];
    for chain in chains {
        let mut machine = Machine::new(false, ALL);
        machine.driver.add(chain).unwrap();
        machine.driver.kick();
        machine.transport.expect_fault();
        assert_eq!(machine.driver.used_index(), 0);
        machine.blk.stop();
    }
}

#[test]
fn a_header_may_be_split_over_buffers() {
    let mut machine = Machine::new(true, ALL);
    let memory = machine.driver.memory.clone();
    memory.write_obj(0u32, GuestAddress(HEADER)).unwrap();
    memory.write_obj(5u64, GuestAddress(HEADER + 0x28)).unwrap();
    let buffers = [
        (HEADER, 4, false),
        (HEADER + 0x24, 12, false),
        (DATA, 513, true),
    ];
    machine.driver.add(&buffers).unwrap();
    machine.driver.kick();
    assert_eq!(machine.driver.wait_used().1, 513);
    let bytes = machine.bytes(DATA, 513);
    assert_eq!(bytes, [[5; 512].as_slice(), &[OK]].concat());
}
