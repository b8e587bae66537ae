//! A driver that does as it should.

mod hostile;
mod machine;

use std::time::{Duration, Instant};

use self::machine::{BOTH, DATA, Machine, read_until};
use super::*;
use crate::devices::virtio::test_driver::wait;
use crate::terminal::Size;

#[test]
fn what_is_written_is_shown_and_what_is_typed_is_heard() {
    for features in BOTH {
        let mut machine = Machine::new(features);
        for round in 0..200 {
            machine.says(format!("<{round}>").as_bytes());
            assert!(machine.line.feed(b"abc").is_empty());
            assert_eq!(machine.hears(64), b"abc");
        }
        machine.shows(b"<198><199>");
        assert_eq!(machine.counter("input_bytes"), 600);
        assert_eq!(machine.counter("dropped_bytes"), 0);
        machine.works();
    }
}

#[test]
fn buffers_of_many_parts_are_one() {
    let mut machine = Machine::new(BOTH[1]);
    machine.put(DATA, b"one--two--three");
    let parts = [
        (DATA, 3, false),
        (DATA + 5, 3, false),
        (DATA + 10, 5, false),
    ];
    machine.output.add(&parts).unwrap();
    machine.output.kick();
    machine.output.wait_used();
    machine.shows(b"onetwothree");

    machine.line.feed(b"abcdef");
    let parts = [
        (DATA, 1, true),
        (DATA + 0x100, 2, true),
        (DATA + 0x200, 9, true),
    ];
    let head = machine.input.add(&parts).unwrap();
    machine.input.kick();
    assert_eq!(machine.input.wait_used(), (head, 6));
    assert_eq!(machine.get(DATA, 1), b"a");
    assert_eq!(machine.get(DATA + 0x100, 2), b"bc");
    assert_eq!(machine.get(DATA + 0x200, 4), b"def\0");
}

#[test]
fn what_is_typed_before_there_is_a_driver_or_room_is_heard_later() {
    for features in BOTH {
        let mut machine = Machine::new(features);
        machine.hvc.stop();
        machine.line.feed(b"early");
        machine.start();
        assert_eq!(machine.hears(2), b"ea");
        // There is no buffer, and then there is one.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(machine.hears(64), b"rly");
        // A buffer waits, and then somebody types.
        let head = machine.input.add(&[(DATA, 64, true)]).unwrap();
        machine.input.kick();
        std::thread::sleep(Duration::from_millis(20));
        machine.line.feed(b"late");
        assert_eq!(machine.input.wait_used(), (head, 4));
    }
}

#[test]
fn a_driver_is_told_how_large_the_terminal_is() {
    let mut machine = Machine::new(BOTH[1]);
    let sizes = |machine: &Machine| {
        (
            machine.hvc.config().into_owned(),
            machine.hvc.config_generation(),
        )
    };
    let (unknown, first) = sizes(&machine);
    assert_eq!(unknown, [0; 4]);
    let size = Size {
        columns: 132,
        rows: 0x1234,
    };
    machine.line.resize(size);
    assert!(wait(&machine.transport.config, Duration::from_secs(1)));
    let (known, second) = sizes(&machine);
    assert_eq!(known, [132, 0, 0x34, 0x12]);
    assert_ne!(second, first);
    // Nothing new.
    machine.line.resize(size);
    assert!(!wait(&machine.transport.config, Duration::from_millis(20)));
    assert_eq!(sizes(&machine), (known, second));

    // The next driver hears of it at once, and one that does not care hears nothing.
    machine.hvc.stop();
    machine.start();
    assert!(wait(&machine.transport.config, Duration::from_secs(1)));
    let mut careless = Machine::new(0);
    careless.line.resize(size);
    assert!(!wait(&careless.transport.config, Duration::from_millis(20)));
    careless.works();
    machine.works();
}

#[test]
fn a_reader_who_is_slow_gets_everything() {
    const TOTAL: usize = 1 << 20;
    let (mut machine, mut reader) = Machine::piped(BOTH[1]);
    let reading = std::thread::spawn(move || {
        read_until(&mut reader, |all| {
            std::thread::sleep(Duration::from_millis(1));
            all.len() >= TOTAL
        })
    });
    let mut line = 0u32;
    let mut said = Vec::new();
    while said.len() < TOTAL {
        let mut block = Vec::new();
        while block.len() < 4096 {
            block.extend(format!("{line:07}\n").bytes());
            line += 1;
        }
        machine.says(&block);
        said.extend(block);
    }
    assert!(
        reading.join().unwrap() == said,
        "some of it was lost or changed"
    );
    assert_eq!(machine.counter("dropped_bytes"), 0);
}

#[test]
fn a_reader_who_does_not_read_holds_the_guest_up_once() {
    let (mut machine, mut reader) = Machine::piped(BOTH[0]);
    let block = [b'x'; 4096];
    let start = Instant::now();
    while machine.counter("dropped_bytes") == 0 {
        machine.says(&block);
    }
    let until_stuck = start.elapsed();
    let start = Instant::now();
    for _ in 0..100 {
        machine.says(&block);
    }
    assert!(start.elapsed() < until_stuck, "it waits each time");
    // Input comes through meanwhile.
    machine.line.feed(b"quit");
    assert_eq!(machine.hears(64), b"quit");

    // The reader is back, and hears what comes then.
    let reading =
        std::thread::spawn(move || read_until(&mut reader, |all| all.ends_with(b"again")));
    while !reading.is_finished() {
        machine.says(b"again");
    }
    reading.join().unwrap();
}
