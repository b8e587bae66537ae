//! A driver that breaks the rules.

use std::time::{Duration, Instant};

use super::machine::{BOTH, DATA, Machine, RAM};
use crate::devices::virtio::Device as _;
use crate::devices::virtio::test_driver::{Buffer, NEXT, Random, WRITE};

/// The device asks for a reset, and works after it.
fn faults_and_recovers(mut machine: Machine, what: &str) {
    println!("{what}");
    machine.transport.expect_fault();
    machine.hvc.stop();
    machine.start();
    machine.works();
}

#[test]
fn a_flood_of_input_without_a_buffer_for_it_is_held_back() {
    let mut machine = Machine::new(BOTH[0]);
    let flood = vec![b'f'; 1 << 20];
    let taken = flood.len() - machine.line.feed(&flood).len();
    assert!((1..=64 << 10).contains(&taken), "{taken}");
    for _ in 0..1000 {
        machine.input.kick();
        assert_eq!(machine.line.feed(&flood).len(), flood.len());
    }
    // None of what was taken is lost, whatever pieces it is heard in.
    let mut heard = 0;
    for len in (1..).step_by(7) {
        if heard == taken {
            break;
        }
        heard += machine.hears(len).len();
    }
    machine.works();
}

#[test]
fn buffers_that_go_the_wrong_way_ask_for_a_reset() {
    for (buffers, what) in [
        (&[(DATA, 8, false)][..], "one to read in receiveq"),
        (&[(DATA, 8, false), (DATA, 8, true)], "both in receiveq"),
    ] {
        let mut machine = Machine::new(BOTH[0]);
        machine.line.feed(b"x");
        machine.input.add(buffers).unwrap();
        machine.input.kick();
        faults_and_recovers(machine, what);
    }
    for (buffers, what) in [
        (&[(DATA, 8, true)][..], "one to write in transmitq"),
        (&[(DATA, 8, false), (DATA, 8, true)], "both in transmitq"),
    ] {
        let mut machine = Machine::new(BOTH[0]);
        machine.output.add(buffers).unwrap();
        machine.output.kick();
        faults_and_recovers(machine, what);
    }
}

#[test]
fn buffers_that_are_none_ask_for_a_reset() {
    let writable = |buffers: &[Buffer], way: bool| -> Vec<Buffer> {
        buffers
            .iter()
            .map(|(at, len, _)| (*at, *len, way))
            .collect()
    };
    for (buffers, what) in [
        (&[(DATA, 0, false)][..], "no bytes"),
        (&[(DATA, 8, false), (DATA, 0, false)], "no bytes at the end"),
        (&[(RAM, 8, false)], "behind RAM"),
        (&[(RAM - 4, 8, false)], "across its end"),
        (&[(u64::MAX - 3, 4, false)], "the last bytes of all"),
        (&[(0, u32::MAX, false)], "4 GiB"),
    ] {
        let mut machine = Machine::new(BOTH[1]);
        machine.output.add(&writable(buffers, false)).unwrap();
        machine.output.kick();
        faults_and_recovers(machine, what);

        let mut machine = Machine::new(BOTH[1]);
        machine.line.feed(b"x");
        machine.input.add(&writable(buffers, true)).unwrap();
        machine.input.kick();
        faults_and_recovers(machine, what);
    }
}

#[test]
fn a_loop_is_not_followed() {
    let mut machine = Machine::new(BOTH[0]);
    machine.line.feed(b"x");
    machine.input.descriptor(0, DATA, 8, WRITE | NEXT, 0);
    machine.input.offer(0);
    machine.input.kick();
    faults_and_recovers(machine, "a loop in receiveq");

    // Behind one that waits for a reader.
    let (mut machine, reader) = Machine::piped(BOTH[0]);
    machine.output.descriptor(0, 0, RAM as u32, 0, 0);
    machine.output.descriptor(1, 0, RAM as u32, NEXT, 1);
    machine.output.offer(0);
    machine.output.offer(1);
    machine.output.kick();
    machine.transport.expect_fault();
    assert_eq!(
        machine.output.used_index(),
        1,
        "the good one was given back"
    );
    drop(reader);
}

#[test]
fn all_of_memory_many_times_over_is_dropped_where_nobody_reads_it() {
    let (mut machine, reader) = Machine::piped(BOTH[0]);
    let all = [(0, RAM as u32, false); 60];
    let head = machine.output.add(&all).unwrap();
    machine.output.kick();
    assert_eq!(machine.output.wait_used(), (head, 0));
    assert!(machine.counter("dropped_bytes") > 59 * RAM);
    assert!(machine.counter("output_bytes") < RAM);
    // A guest that never stops does not keep the device from being reset.
    while machine.output.add(&[(0, RAM as u32, false)]).is_some() {}
    machine.output.kick();
    let start = Instant::now();
    machine.hvc.stop();
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(reader);
}

#[test]
fn the_configuration_space_cannot_be_written() {
    let mut machine = Machine::new(BOTH[0]);
    let before = (
        machine.hvc.config().into_owned(),
        machine.hvc.config_generation(),
    );
    for offset in [0, 1, 2, 4, 8, 4096, usize::MAX] {
        for data in [&[0xff][..], &[0xff; 2], &[0xff; 4], &[0xff; 8], &[]] {
            machine.hvc.write_config(offset, data);
        }
    }
    let after = (
        machine.hvc.config().into_owned(),
        machine.hvc.config_generation(),
    );
    assert_eq!(before, after);
    machine.works();
}

#[test]
fn a_reset_comes_at_any_moment() {
    for features in BOTH {
        let mut machine = Machine::new(features);
        let mut random = Random::new(3);
        for _ in 0..60 {
            machine.put(DATA, &[b'.'; 4096]);
            while machine.output.add(&[(DATA, 4096, false)]).is_some() {}
            while machine.input.add(&[(DATA + 0x10000, 512, true)]).is_some() {}
            machine.output.kick();
            machine.line.feed(&[b'x'; 4096]);
            std::thread::sleep(Duration::from_micros(random.below(1500)));
            machine.hvc.stop();
            let used =
                |machine: &Machine| (machine.input.used_index(), machine.output.used_index());
            let before = used(&machine);
            machine.line.feed(&[b'x'; 4096]);
            std::thread::sleep(Duration::from_micros(300));
            assert_eq!(used(&machine), before, "it goes on");
            assert!(!machine.transport.faulted());
            machine.start();
        }
        machine.line.forget_input();
        machine.works();
    }
}

#[test]
fn a_queue_that_is_not_enabled_is_missed() {
    let mut machine = Machine::new(BOTH[0]);
    machine.hvc.stop();
    for missing in [0, 1] {
        let mut active = machine
            .transport
            .active(BOTH[0], &[&machine.input, &machine.output]);
        active.queues[missing] = None;
        assert!(machine.hvc.start(active).is_err());
    }
    machine.start();
    machine.works();
}
