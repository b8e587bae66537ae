//! A started disk, asked rightly and wrongly, on either engine.

mod flight;
mod machine;
mod zeroes;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use vm_memory::{Bytes, GuestAddress};

use super::config::{F_FLUSH, F_MQ, F_RO};
use super::*;
use crate::devices::virtio::test_driver::Buffer;
use machine::{ALL, DATA, HEADER, IOERR, Machine, OK, STATUS, UNSUPP, on_each};

#[test]
fn the_configuration_says_what_it_is() {
    on_each(|kind| {
        let (machine, _file) = Machine::new(kind, true, ALL);
        let config = machine.blk.config();
        assert_eq!(config[..8], 16u64.to_le_bytes());
        assert_eq!(config[12..16], 254u32.to_le_bytes());
        assert_eq!(config[20..24], 512u32.to_le_bytes());
        assert_ne!(machine.blk.features() & F_RO, 0);
        let (writable, _file) = Machine::new(kind, false, ALL);
        assert_eq!(writable.blk.features() & F_RO, 0);
    });
}

#[test]
fn sectors_are_read_into_scattered_buffers() {
    on_each(|kind| {
        let (mut machine, _file) = Machine::new(kind, true, ALL);
        let buffers = [(DATA, 100, true), (DATA + 0x1000, 924, true)];
        assert_eq!(machine.ask(0, 3, &buffers), (OK, 1025));
        assert_eq!(
            machine.bytes(DATA, 101),
            [[3; 100].as_slice(), &[0]].concat()
        );
        let second = machine.bytes(DATA + 0x1000, 925);
        assert_eq!(second, [[3; 412].as_slice(), &[4; 512], &[0]].concat());
        assert_eq!(machine.counter("read_bytes"), 1024);
    });
}

#[test]
fn what_is_written_is_read_again_and_in_the_file() {
    on_each(|kind| {
        let (mut machine, file) = Machine::new(kind, false, ALL);
        let memory = machine.drivers[0].memory.clone();
        memory
            .write_slice(&[0xaa; 1024], GuestAddress(DATA))
            .unwrap();
        let buffers = [(DATA, 1000, false), (DATA + 1000, 24, false)];
        assert_eq!(machine.ask(1, 14, &buffers), (OK, 1));
        assert_eq!(machine.ask(4, 0, &[]), (OK, 1));
        assert_eq!(machine.ask(0, 14, &[(DATA + 0x2000, 512, true)]), (OK, 513));
        assert_eq!(machine.bytes(DATA + 0x2000, 512), [0xaa; 512]);
        let file = std::fs::read(file.path()).unwrap();
        assert_eq!(file.len(), 16 * 512);
        assert_eq!(file[13 * 512..14 * 512], [13; 512]);
        assert_eq!(file[14 * 512..], [0xaa; 1024]);
        assert_eq!(machine.counter("written_bytes"), 1024);
        assert_eq!(machine.counter("flushes"), 1);
    });
}

#[test]
fn many_requests_in_one_kick_are_all_answered() {
    on_each(|kind| {
        let (mut machine, _file) = Machine::new(kind, true, ALL);
        let memory = machine.drivers[0].memory.clone();
        for round in 0..500u64 {
            let mut heads = BTreeSet::new();
            for i in 0..40u64 {
                let at = HEADER + 0x20 * i;
                memory.write_obj(0u32, GuestAddress(at)).unwrap();
                let sector = (round + i) % 16;
                memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
                let buffer = DATA + 0x400 * i;
                let buffers = [(at, 16, false), (buffer, 513, true)];
                heads.insert(machine.drivers[0].add(&buffers).unwrap());
            }
            machine.drivers[0].kick();
            while !heads.is_empty() {
                let (head, len) = machine.drivers[0].wait_used();
                assert!(heads.remove(&head), "{head} comes unasked");
                assert_eq!(len, 513);
            }
            for i in 0..40u64 {
                let sector = ((round + i) % 16) as u8;
                let bytes = machine.bytes(DATA + 0x400 * i, 513);
                assert_eq!(bytes, [[sector; 512].as_slice(), &[OK]].concat());
            }
        }
    });
}

#[test]
fn without_flush_every_write_is_durable_at_once() {
    on_each(|kind| {
        let (mut machine, _file) = Machine::new(kind, false, ALL & !F_FLUSH);
        assert_eq!(machine.ask(1, 0, &[(DATA, 512, false)]), (OK, 1));
    });
}

#[test]
fn requests_beyond_the_end_fail_and_nothing_is_written() {
    on_each(|kind| {
        let (mut machine, file) = Machine::new(kind, false, ALL);
        let before = std::fs::read(file.path()).unwrap();
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
        assert_eq!(std::fs::read(file.path()).unwrap(), before);
        assert!(!machine.transport.faulted());
        assert_eq!(machine.counter("errors"), 14);
    });
}

#[test]
fn a_readonly_disk_is_not_written_to() {
    on_each(|kind| {
        let (mut machine, file) = Machine::new(kind, true, ALL);
        assert_eq!(machine.ask(1, 0, &[(DATA, 512, false)]), (IOERR, 1));
        assert_eq!(machine.ask(4, 0, &[]), (OK, 1), "nothing to flush");
        assert_eq!(std::fs::read(file.path()).unwrap()[..512], [0; 512]);
    });
}

#[test]
fn the_id_fills_what_room_there_is() {
    on_each(|kind| {
        let (mut machine, _file) = Machine::new(kind, true, ALL);
        assert_eq!(machine.ask(8, 0, &[(DATA, 20, true)]), (OK, 21));
        let id = machine.bytes(DATA, 20);
        assert!(id[..16].iter().all(u8::is_ascii_hexdigit), "{id:?}");
        assert_eq!(machine.ask(8, 0, &[(DATA, 4, true)]), (OK, 5));
        assert_eq!(machine.ask(8, 0, &[(DATA, 512, true)]), (OK, 20));
        assert_eq!(machine.ask(8, 0, &[]), (OK, 1));
    });
}

#[test]
fn unknown_requests_are_unsupported() {
    on_each(|kind| {
        let (mut machine, _file) = Machine::new(kind, false, ALL);
        for unknown in [2, 3, 5, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(machine.ask(unknown, 0, &[(DATA, 512, true)]).0, UNSUPP);
        }
    });
}

#[test]
fn a_file_that_shrinks_is_an_error_of_the_request() {
    on_each(|kind| {
        let (mut machine, file) = Machine::new(kind, true, ALL);
        file.as_file().set_len(512).unwrap();
        assert_eq!(machine.ask(0, 0, &[(DATA, 1024, true)]), (IOERR, 0));
        assert_eq!(machine.ask(0, 0, &[(DATA, 512, true)]), (OK, 513));
    });
}

#[test]
fn chains_that_are_no_requests_ask_for_a_reset() {
    on_each(|kind| {
        let chains: [&[Buffer]; 4] = [
            // No room for a status, a short header, no header, a buffer outside of RAM.
            &[(HEADER, 16, false), (DATA, 512, false)],
            &[(HEADER, 15, false), (STATUS, 1, true)],
            &[(STATUS, 513, true)],
            &[(HEADER, 16, false), (1 << 32, 512, true), (STATUS, 1, true)],
        ];
        for chain in chains {
            let (mut machine, _file) = Machine::new(kind, false, ALL);
            machine.drivers[0].add(chain).unwrap();
            machine.drivers[0].kick();
            machine.transport.expect_fault();
            assert_eq!(machine.drivers[0].used_index(), 0);
            machine.blk.stop();
        }
    });
}

#[test]
fn a_header_may_be_split_over_buffers() {
    on_each(|kind| {
        let (mut machine, _file) = Machine::new(kind, true, ALL);
        let memory = machine.drivers[0].memory.clone();
        memory.write_obj(0u32, GuestAddress(HEADER)).unwrap();
        memory.write_obj(5u64, GuestAddress(HEADER + 0x28)).unwrap();
        let buffers = [
            (HEADER, 4, false),
            (HEADER + 0x24, 12, false),
            (DATA, 513, true),
        ];
        machine.drivers[0].add(&buffers).unwrap();
        machine.drivers[0].kick();
        assert_eq!(machine.drivers[0].wait_used().1, 513);
        let bytes = machine.bytes(DATA, 513);
        assert_eq!(bytes, [[5; 512].as_slice(), &[OK]].concat());
    });
}

#[test]
fn a_serial_number_that_was_given_is_said() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    let serial = *b"twenty bytes exactly";
    let options = Options {
        readonly: true,
        serial: Some(serial),
        queues: 1,
    };
    let blk = Blk::open(file.path(), options).unwrap();
    assert_eq!(blk.disk.image.id, serial);
}

#[test]
fn a_disk_that_is_full_or_fails_costs_the_guest_its_request_and_nothing_else() {
    on_each(|kind| {
        let full = File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut machine = Machine::on(kind, full, 16, 1);
        for _ in 0..3 {
            assert_eq!(machine.ask(1, 0, &[(DATA, 4096, false)]), (IOERR, 1));
        }
        assert_eq!(machine.ask(0, 0, &[(DATA, 512, true)]), (OK, 513));
        assert_eq!(machine.counter("errors"), 3);
        assert!(!machine.transport.faulted());

        // Nothing is mapped there, which reads as EIO.
        let failing = File::open("/proc/self/mem").unwrap();
        let mut machine = Machine::on(kind, failing, 16, 1);
        assert_eq!(machine.ask(0, 0, &[(DATA, 512, true)]), (IOERR, 0));
        assert!(!machine.transport.faulted());
    });
}

#[test]
fn there_is_a_queue_for_each_processor_up_to_a_bound() {
    for (asked, there) in [(0, 1u16), (1, 1), (4, 4), (16, 16), (255, 16)] {
        let image = Image {
            file: tempfile::tempfile().unwrap(),
            sectors: 1,
            readonly: false,
            id: [0; 20],
        };
        let blk = Blk::new(image, asked);
        assert_eq!(blk.queue_sizes().len(), usize::from(there));
        assert_eq!(blk.config()[34..36], there.to_le_bytes());
        assert_eq!(blk.features() & F_MQ != 0, there > 1);
    }
}

#[test]
fn without_an_io_uring_system_calls_do_it_and_that_is_decided_once() {
    // A file that no ring takes: it stands for a kernel that has none.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open("/dev/full")
        .unwrap();
    let image = Image {
        file,
        sectors: 16,
        readonly: false,
        id: [0; 20],
    };
    let mut blk = Blk::new(image, 4);
    for _ in 0..2 {
        let engines = blk.engines(&[256, 256]).unwrap();
        let calls = |engine: &Engine| matches!(engine, Engine::Calls(_));
        assert!(engines.len() == 2 && engines.iter().all(calls));
        assert_eq!(blk.engine, Some(engine::Kind::Calls));
    }
}
