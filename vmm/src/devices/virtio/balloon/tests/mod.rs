//! A started balloon, driven rightly and wrongly.

mod hostile;
mod machine;
mod statistics;

use machine::*;

use super::config::*;
use super::*;
use crate::devices::virtio::test_driver::{PATIENCE, wait};

#[test]
fn pages_in_the_balloon_are_the_host_s() {
    for sharing in BOTH {
        let mut machine = Machine::new(sharing);
        machine.fill(DATA, 8);
        let list = machine.list([DATA + 5 * PAGE, DATA + 2 * PAGE, DATA + PAGE]);
        machine.ask(INFLATE, &[list]);
        let left = [true, false, false, true, true, false, true, true];
        assert_eq!(machine.filled(DATA, 8), left, "{sharing:?}");
        assert_eq!(machine.counter("balloon_bytes"), Some(3 * PAGE));
        assert_eq!(machine.counter("returned_bytes"), Some(3 * PAGE));
        // The first and the last page that there are.
        machine.fill(RAM - PAGE, 1);
        let list = machine.list([RAM - PAGE, 0]);
        machine.ask(INFLATE, &[list]);
        assert_eq!(machine.filled(RAM - PAGE, 1), [false]);

        let list = machine.list([DATA + PAGE, DATA + 5 * PAGE]);
        machine.ask(DEFLATE, &[list]);
        assert_eq!(machine.counter("balloon_bytes"), Some(3 * PAGE));
        machine.fill(DATA, 8);
        assert_eq!(machine.filled(DATA, 8), [true; 8]);
        assert!(!machine.transport.faulted());
    }
}

#[test]
fn a_list_in_pieces_and_in_any_order_is_one_list() {
    let mut machine = Machine::new(BOTH[0]);
    machine.fill(DATA, 1024);
    let (at, len, _) = machine.list((0..1024).rev().map(|page| DATA + page * PAGE));
    // Cut within a number.
    machine.ask(
        INFLATE,
        &[(at, 1001, false), (at + 1001, len - 1001, false)],
    );
    assert_eq!(machine.filled(DATA, 1024), [false; 1024]);
    assert_eq!(machine.counter("balloon_bytes"), Some(1024 * PAGE));
    // More of them than there are.
    let list = machine.list((0..2048).map(|page| DATA + page * PAGE));
    machine.ask(DEFLATE, &[list]);
    assert_eq!(machine.counter("balloon_bytes"), Some(0));
}

#[test]
fn what_is_reported_free_is_the_host_s() {
    for sharing in BOTH {
        let mut machine = Machine::new(sharing);
        machine.fill(DATA, 1024);
        machine.ask(
            REPORTS,
            &[
                (DATA, 512 * PAGE as u32, true),
                (DATA + 600 * PAGE, PAGE as u32, true),
                (DATA + 700 * PAGE + 1, 2 * PAGE as u32, true),
            ],
        );
        let left = machine.filled(DATA, 1024);
        assert!(left[..512].iter().all(|filled| !filled), "{sharing:?}");
        let gone: Vec<_> = (512..1024).filter(|page| !left[*page]).collect();
        assert_eq!(gone, [600, 701], "a part of a page is no page");
        assert_eq!(machine.counter("returned_bytes"), Some(514 * PAGE));
        assert_eq!(machine.counter("reports"), Some(1));
        assert_eq!(machine.counter("balloon_bytes"), Some(0));
        // It does not say that these are free.
        machine.ask(REPORTS, &[(DATA + 800 * PAGE, PAGE as u32, false)]);
        assert_eq!(machine.filled(DATA + 800 * PAGE, 1), [true]);
    }
}

#[test]
fn free_pages_that_hold_something_stay_as_they_are() {
    for (poison, given) in [(0_u32, true), (0xaaaa_aaaa, false)] {
        let mut machine = Machine::idle(BOTH[0]);
        // Linux writes it before it is ready.
        machine.balloon.write_config(12, &poison.to_le_bytes());
        machine.start();
        machine.fill(DATA, 1);
        machine.ask(REPORTS, &[(DATA, PAGE as u32, true)]);
        assert_eq!(machine.filled(DATA, 1), [!given]);
        assert_eq!(machine.counter("reports"), Some(1));
        // Into the balloon they go all the same.
        let list = machine.list([DATA]);
        machine.ask(INFLATE, &[list]);
        assert_eq!(machine.filled(DATA, 1), [false]);
        // The next driver has not said so.
        machine.balloon.stop();
        machine.start();
        machine.fill(DATA, 1);
        machine.ask(REPORTS, &[(DATA, PAGE as u32, true)]);
        assert_eq!(machine.filled(DATA, 1), [false]);
    }
}

#[test]
fn reports_come_by_whichever_queue_the_driver_counts() {
    for (without, queue, who) in [
        (0, 3, "Linux"),
        (0, 4, "the specification"),
        (F_STATS_VQ, 2, "Linux without statistics"),
        (F_STATS_VQ, 4, "the specification without statistics"),
    ] {
        println!("{who}");
        let mut machine = Machine::idle(BOTH[0]);
        machine.start_with(FEATURES & !without, &[INFLATE, DEFLATE, queue]);
        machine.fill(DATA, 1);
        machine.ask(queue, &[(DATA, PAGE as u32, true)]);
        assert_eq!(machine.filled(DATA, 1), [false]);
    }
}

#[test]
fn the_driver_is_told_how_large_the_balloon_is_to_be() {
    let mut machine = Machine::idle(BOTH[0]);
    let target = machine.balloon.target();
    assert_eq!(*machine.balloon.config(), [0; 16]);
    target.set(5 * PAGE + 1);
    assert_eq!(machine.balloon.config()[..4], [5, 0, 0, 0]);
    assert_eq!(target.get(), 5 * PAGE);
    machine.start();
    let generation = machine.balloon.config_generation();
    let told = |machine: &Machine| wait(&machine.transport.config, std::time::Duration::ZERO);
    assert!(!told(&machine), "it reads that first");
    target.set(0x12345 * PAGE);
    assert!(told(&machine));
    assert_eq!(machine.balloon.config()[..4], [0x45, 0x23, 1, 0]);
    assert_ne!(machine.balloon.config_generation(), generation);
    assert_eq!(machine.counter("target_bytes"), Some(0x12345 * PAGE));
    target.set(0x12345 * PAGE);
    assert!(!told(&machine), "nothing has changed");
    target.set(u64::MAX);
    assert_eq!(machine.balloon.config()[..4], [0xff; 4]);
    assert!(told(&machine));

    // It says what it has reached, and nothing else.
    machine.balloon.write_config(4, &[1, 2, 3, 4]);
    machine.balloon.write_config(0, &[9; 4]);
    machine.balloon.write_config(8, &[9; 4]);
    machine.balloon.write_config(5, &[9; 4]);
    machine.balloon.write_config(4, &[9; 2]);
    machine.balloon.write_config(4, &[9; 8]);
    machine.balloon.write_config(usize::MAX, &[9; 4]);
    let space = machine.balloon.config().into_owned();
    assert_eq!(space[4..], [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);

    // After a reset the target is still there, and what the driver said is not.
    machine.balloon.stop();
    target.set(PAGE);
    assert!(!told(&machine), "there is nobody to be told");
    machine.start();
    let space = machine.balloon.config().into_owned();
    assert_eq!(space, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    target.set(0);
    assert!(wait(&machine.transport.config, PATIENCE));
}

#[test]
fn a_driver_without_queues_has_a_balloon_that_does_nothing() {
    let mut machine = Machine::idle(BOTH[0]);
    machine.start_with(FEATURES, &[]);
    machine.balloon.stop();
    machine.start();
    machine.works();
}

#[test]
fn a_reset_begins_anew() {
    let mut machine = Machine::new(BOTH[1]);
    let list = machine.list([DATA]);
    machine.ask(INFLATE, &[list]);
    assert_eq!(machine.counter("balloon_bytes"), Some(PAGE));
    machine.balloon.stop();
    assert_eq!(machine.counter("balloon_bytes"), Some(0));
    assert_eq!(machine.counter("returned_bytes"), Some(PAGE), "so far");
    machine.start();
    machine.works();
}
