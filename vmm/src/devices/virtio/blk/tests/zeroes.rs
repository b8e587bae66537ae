//! Discarding and zeroing: what becomes of the file, and what a guest must not ask.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::super::config::{
    DISCARD_SECTORS_MAX, F_DISCARD, F_WRITE_ZEROES, WRITE_ZEROES_SECTORS_MAX,
};
use super::machine::{ALL, DATA, IOERR, Kind, Machine, OK, UNSUPP, on_each};
use crate::devices::virtio::Device as _;

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;
/// The disk's size.
const SECTORS: u64 = 4096;

/// A disk full of ones; its file is given too.
fn machine(kind: Kind, mut file: File) -> (Machine, File) {
    file.write_all(&vec![1; (SECTORS * 512) as usize]).unwrap();
    file.sync_all().unwrap();
    let ours = file.try_clone().unwrap();
    (Machine::on(kind, file, SECTORS, 1), ours)
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut segment = sector.to_le_bytes().to_vec();
    segment.extend(sectors.to_le_bytes());
    segment.extend(flags.to_le_bytes());
    segment
}

/// Asks with this data; says the status.
fn ask(machine: &mut Machine, kind: u32, data: &[u8]) -> u8 {
    machine.write(DATA, data);
    let (status, len) = machine.ask(kind, 0, &[(DATA, data.len() as u32, false)]);
    assert_eq!(len, 1, "only the status is written");
    status
}

/// Whether the file has zeroes from sector `from` up to `to`, and ones elsewhere.
fn is_zero(file: &File, from: u64, to: u64) -> bool {
    let mut content = vec![2; (SECTORS * 512) as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    let (from, to) = ((from * 512) as usize, (to * 512) as usize);
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
    content[from..to].iter().all(|byte| *byte == 0)
        && content[..from].iter().all(|byte| *byte == 1)
        && content[to..].iter().all(|byte| *byte == 1)
}

fn blocks(file: &File) -> u64 {
    file.metadata().unwrap().blocks()
}

#[test]
fn what_is_discarded_is_given_back_to_the_host() {
    on_each(|kind| {
        let (mut machine, file) = machine(kind, tempfile::tempfile().unwrap());
        let before = blocks(&file);
        assert_eq!(ask(&mut machine, DISCARD, &segment(1024, 2048, 0)), OK);
        assert!(is_zero(&file, 1024, 3072));
        let after = blocks(&file);
        assert!(after + 2048 <= before, "{before} blocks, then {after}");
        assert_eq!(machine.counter("discards"), 1);
    });
}

#[test]
fn what_is_zeroed_keeps_its_space_unless_it_may_be_unmapped() {
    on_each(|kind| {
        let (mut machine, file) = machine(kind, tempfile::tempfile().unwrap());
        let before = blocks(&file);
        assert_eq!(ask(&mut machine, WRITE_ZEROES, &segment(1025, 2045, 0)), OK);
        assert!(is_zero(&file, 1025, 3070));
        assert!(blocks(&file) >= before);
        assert_eq!(
            ask(&mut machine, WRITE_ZEROES, &segment(1024, 2048, UNMAP)),
            OK
        );
        assert!(is_zero(&file, 1024, 3072));
        assert!(blocks(&file) + 2048 <= before);
        assert_eq!(machine.counter("write_zeroes"), 2);
    });
}

#[test]
fn zeroes_are_written_where_the_file_system_makes_none() {
    on_each(|kind| {
        // A tmpfs makes holes only.
        let (mut machine, file) = match tempfile::tempfile_in("/dev/shm") {
            Ok(file) => machine(kind, file),
            Err(error) => return println!("skipped: no tmpfs at /dev/shm: {error}"),
        };
        let before = blocks(&file);
        assert_eq!(ask(&mut machine, WRITE_ZEROES, &segment(7, 4000, 0)), OK);
        assert!(is_zero(&file, 7, 4007));
        assert_eq!(blocks(&file), before);
    });
}

#[test]
fn hostile_segments_change_nothing() {
    on_each(|kind| {
        let (mut machine, file) = machine(kind, tempfile::tempfile().unwrap());
        for asked in [DISCARD, WRITE_ZEROES] {
            for (sector, sectors) in [
                (SECTORS, 1),
                (SECTORS - 1, 2),
                (0, SECTORS as u32 + 1),
                (u64::MAX, 1),
                (u64::MAX, u32::MAX),
                (1 << 55, 1),
                (0, u32::MAX),
                (0, WRITE_ZEROES_SECTORS_MAX + 1),
            ] {
                let data = segment(sector, sectors, 0);
                assert_eq!(ask(&mut machine, asked, &data), IOERR);
            }
            // None, a part of one, one and a part, two, as many as there is room for.
            for len in [1, 15, 17, 32, 4096] {
                let mut data = segment(0, 1, 0).repeat(256);
                data.truncate(len);
                assert_eq!(ask(&mut machine, asked, &data), IOERR, "{len} bytes");
            }
            assert_eq!(machine.ask(asked, 0, &[]), (IOERR, 1));
            for flags in [2, 4, 1 << 31, u32::MAX] {
                let data = segment(0, 1, flags);
                assert_eq!(ask(&mut machine, asked, &data), UNSUPP);
            }
            assert_eq!(ask(&mut machine, asked, &segment(5, 0, 0)), OK, "nothing");
        }
        let unmap = segment(0, 1, UNMAP);
        assert_eq!(ask(&mut machine, DISCARD, &unmap), UNSUPP);
        assert!(is_zero(&file, 0, 0));
        assert!(!machine.transport.faulted());
    });
}

#[test]
fn a_segment_may_be_split_over_buffers() {
    on_each(|kind| {
        let (mut machine, file) = machine(kind, tempfile::tempfile().unwrap());
        machine.write(DATA, &segment(8, 8, UNMAP));
        let buffers = [(DATA, 5, false), (DATA + 5, 11, false)];
        assert_eq!(machine.ask(WRITE_ZEROES, 0, &buffers), (OK, 1));
        assert!(is_zero(&file, 8, 16));
    });
}

#[test]
fn a_driver_that_did_not_take_the_feature_may_not_ask() {
    on_each(|kind| {
        let features = ALL & !F_DISCARD & !F_WRITE_ZEROES;
        let (mut machine, _file) = Machine::new(kind, false, features);
        for asked in [DISCARD, WRITE_ZEROES] {
            assert_eq!(ask(&mut machine, asked, &segment(0, 1, 0)), UNSUPP);
        }
    });
}

#[test]
fn a_readonly_disk_offers_neither_and_refuses_both() {
    on_each(|kind| {
        let (mut machine, file) = Machine::new(kind, true, ALL);
        let features = machine.blk.features();
        assert_eq!(features & (F_DISCARD | F_WRITE_ZEROES), 0);
        for asked in [DISCARD, WRITE_ZEROES] {
            assert_eq!(ask(&mut machine, asked, &segment(1, 1, 0)), IOERR);
        }
        assert_eq!(std::fs::read(file.path()).unwrap()[512..1024], [1; 512]);
    });
}

#[test]
fn the_driver_is_told_the_limits() {
    let (machine, _file) = Machine::new(Kind::Calls, false, ALL);
    let config = machine.blk.config();
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(field(36), DISCARD_SECTORS_MAX);
    assert_eq!(field(40), 1);
    assert_eq!(field(44), 8);
    assert_eq!(field(48), WRITE_ZEROES_SECTORS_MAX);
    assert_eq!(field(52), 1);
    assert_eq!(config[56], 1);
    assert_eq!(config.len(), 60);
}
