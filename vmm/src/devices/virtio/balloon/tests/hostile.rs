//! A guest that means harm.

use std::time::Duration;

use super::*;
use crate::devices::virtio::test_driver::{Buffer, NEXT, Random, WRITE};

/// The balloon asks for a reset, and works after it.
fn faults_and_recovers(mut machine: Machine, what: &str) {
    println!("{what}");
    machine.transport.expect_fault();
    machine.balloon.stop();
    machine.start();
    machine.works();
}

#[test]
fn pages_outside_of_ram_ask_for_a_reset_and_cost_nothing() {
    for queue in [INFLATE, DEFLATE] {
        for page in [RAM, RAM + PAGE, 1 << 32, u64::from(u32::MAX) * PAGE] {
            let mut machine = Machine::new(BOTH[0]);
            machine.fill(DATA, 1);
            machine.fill(RAM - PAGE, 1);
            let list = machine.list([DATA, RAM - PAGE, page]);
            machine.offer(queue, &[list]);
            machine.transport.expect_fault();
            assert_eq!(machine.filled(DATA, 1), [true], "the good ones stay");
            assert_eq!(machine.filled(RAM - PAGE, 1), [true]);
            assert_eq!(machine.counter("balloon_bytes"), Some(0));
            faults_again(machine);
        }
    }
}

/// After a fault that was seen.
fn faults_again(mut machine: Machine) {
    machine.balloon.stop();
    machine.start();
    machine.works();
}

#[test]
fn what_is_no_list_asks_for_a_reset() {
    const LONGEST: u32 = 16 << 10;
    for (buffers, what) in [
        (&[(LIST, 1, false)][..], "a quarter of a number"),
        (&[(LIST, 5, false)], "a number and a quarter"),
        (&[(LIST, 1023, false)], "a number cut short"),
        (&[(LIST, 2, false), (LIST, 1, false)], "three bytes in two"),
        (&[(LIST, 4, true)], "nothing to read"),
        (&[(LIST, 0, false)], "a buffer of no bytes"),
        (&[(LIST, LONGEST + 4, false)], "a list that is too long"),
        (&[(0, RAM as u32, false)], "all of memory"),
        (&[(RAM - 2, 4, false)], "a list across the end"),
        (&[(1 << 40, 4, false)], "a list outside of memory"),
    ] {
        for queue in [INFLATE, DEFLATE] {
            let mut machine = Machine::new(BOTH[0]);
            machine.offer(queue, buffers);
            faults_and_recovers(machine, what);
        }
    }
    // As long as it may be.
    let mut machine = Machine::new(BOTH[0]);
    machine.ask(INFLATE, &[(LIST, LONGEST, false)]);
    machine.works();
}

#[test]
fn reports_of_what_is_not_memory_ask_for_a_reset() {
    for (buffer, what) in [
        ((DATA, 0, true), "a range of no bytes"),
        ((RAM, PAGE as u32, true), "behind the end"),
        ((RAM - PAGE, 2 * PAGE as u32, true), "across the end"),
        ((1 << 40, PAGE as u32, true), "outside of memory"),
        (
            (u64::MAX - PAGE + 1, PAGE as u32, true),
            "the last page of all",
        ),
        ((DATA, u32::MAX, true), "4 GiB"),
    ] {
        let mut machine = Machine::new(BOTH[1]);
        let good: Buffer = (DATA, PAGE as u32, true);
        machine.fill(DATA, 1);
        machine.offer(REPORTS, &[good, buffer]);
        machine.transport.expect_fault();
        assert_eq!(machine.filled(DATA, 1), [true], "the good one stays");
        println!("{what}");
        faults_again(machine);
    }
}

#[test]
fn a_head_that_is_held_is_not_taken_twice_and_a_loop_is_not_followed() {
    for (queue, flags, times) in [
        (STATISTICS, 0, 2),
        (INFLATE, NEXT, 1),
        (REPORTS, WRITE | NEXT, 1),
    ] {
        let mut machine = Machine::new(BOTH[0]);
        machine.drivers[queue].descriptor(0, LIST, 40, flags, 0);
        for _ in 0..times {
            machine.drivers[queue].offer(0);
        }
        machine.drivers[queue].kick();
        faults_and_recovers(machine, "the same again");
    }
}

#[test]
fn a_guest_may_give_its_rings_away() {
    for sharing in BOTH {
        let mut machine = Machine::new(sharing);
        // Zeros are no rings that go on: the device says so, or does nothing any more.
        machine.offer(REPORTS, &[(0, LIST as u32, true)]);
        std::thread::sleep(Duration::from_millis(50));
        machine.drivers.iter().for_each(|driver| driver.kick());
        std::thread::sleep(Duration::from_millis(50));
        faults_again(machine);
    }
}

#[test]
fn a_reset_comes_at_any_moment() {
    for sharing in BOTH {
        let mut machine = Machine::new(sharing);
        let mut random = Random::new(7);
        let list = machine.list((0..2048).map(|page| DATA + page * PAGE));
        for _ in 0..60 {
            for _ in 0..16 {
                machine.offer(INFLATE, &[list]);
                machine.offer(DEFLATE, &[list]);
                machine.offer(REPORTS, &[(DATA, 2048 * PAGE as u32, true)]);
                machine.offer(STATISTICS, &[(LIST, 100, false)]);
            }
            std::thread::sleep(Duration::from_micros(random.below(1500)));
            machine.counter("free_bytes");
            machine.balloon.stop();
            let used = |machine: &Machine| {
                machine
                    .drivers
                    .iter()
                    .map(|driver| driver.used_index())
                    .collect::<Vec<_>>()
            };
            let before = used(&machine);
            machine.fill(DATA, 64);
            std::thread::sleep(Duration::from_micros(300));
            assert_eq!(machine.filled(DATA, 64), [true; 64], "it goes on");
            assert_eq!(used(&machine), before);
            assert!(!machine.transport.faulted());
            machine.start();
        }
        machine.works();
    }
}

#[test]
fn a_guest_that_never_stops_is_reset_at_once() {
    let mut machine = Machine::new(BOTH[0]);
    let list = machine.list((0..4096).map(|page| page * 2 * PAGE % RAM));
    while machine.drivers[INFLATE].add(&[list]).is_some() {}
    machine.drivers[INFLATE].kick();
    let start = std::time::Instant::now();
    machine.balloon.stop();
    assert!(start.elapsed() < Duration::from_secs(5));
    machine.start();
    machine.works();
}
