//! Requests in flight: several at a time, several queues, and ends while something is under way.
//!
//! The disk is a socket here, whose other end decides how long a read takes.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::machine::{DATA, Machine, OK, PENDING, has_ring, on_each};
use crate::devices::virtio::Device as _;
use crate::devices::virtio::test_driver::{TestTransport, WRITE};

const READ: (u32, u64) = (0, 0);
const WRITE_REQUEST: (u32, u64) = (1, 0);
/// Longer than anything takes that does not wait.
const WHILE: Duration = Duration::from_millis(200);

#[test]
fn requests_end_in_the_order_in_which_the_disk_does_them() {
    if !has_ring() {
        return;
    }
    let (mut machine, mut disk) = Machine::slow(1);
    let read = machine.begin(0, 0, READ, &[(DATA, 1024, true)]);
    machine.write(DATA + 0x1000, &[7; 512]);
    let write = machine.begin(0, 1, WRITE_REQUEST, &[(DATA + 0x1000, 512, false)]);
    assert_eq!(machine.drivers[0].wait_used(), (write, 1));
    assert_eq!((machine.status(0), machine.status(1)), (PENDING, OK));
    let mut written = [0; 512];
    disk.read_exact(&mut written).unwrap();
    assert_eq!(written, [7; 512]);

    assert_eq!(machine.drivers[0].take_used(), None);
    disk.write_all(&[3; 1024]).unwrap();
    assert_eq!(machine.drivers[0].wait_used(), (read, 1025));
    assert_eq!(machine.bytes(DATA, 1024), [3; 1024]);
    assert_eq!(machine.status(0), OK);
}

#[test]
fn a_full_queue_is_in_flight_at_once() {
    if !has_ring() {
        return;
    }
    let (mut machine, mut disk) = Machine::slow(1);
    // Of 256 descriptors, three for each.
    let heads: Vec<_> = (0..85)
        .map(|slot| machine.begin(0, slot, READ, &[(DATA + 512 * slot, 512, true)]))
        .collect();
    thread::sleep(WHILE);
    assert!(machine.drivers[0].take_used().is_none());
    disk.write_all(&[9; 85 * 512]).unwrap();
    let mut used: Vec<_> = heads
        .iter()
        .map(|_| machine.drivers[0].wait_used().0)
        .collect();
    let mut heads = heads;
    heads.sort_unstable();
    used.sort_unstable();
    assert_eq!(used, heads);
    assert_eq!(machine.bytes(DATA, 85 * 512), [9; 85 * 512]);
}

#[test]
fn a_stop_waits_for_what_is_in_flight() {
    if !has_ring() {
        return;
    }
    let (mut machine, mut disk) = Machine::slow(2);
    let memory = machine.drivers[0].memory.clone();
    machine.begin(0, 0, READ, &[(DATA, 1024, true)]);
    machine.begin(1, 1, READ, &[(DATA + 0x1000, 1024, true)]);
    thread::sleep(WHILE);
    assert!(Arc::strong_count(&memory) > 3, "held by what is in flight");
    let Machine {
        mut blk, drivers, ..
    } = machine;
    let stopping = thread::spawn(move || {
        blk.stop();
        blk
    });
    thread::sleep(WHILE);
    assert!(!stopping.is_finished(), "guest memory is still written to");
    disk.write_all(&[5; 2048]).unwrap();
    let mut blk = stopping.join().unwrap();
    // Ours and each driver's.
    assert_eq!(Arc::strong_count(&memory), 1 + drivers.len());
    for driver in &drivers {
        assert_eq!(driver.used_index(), 0, "a driver that resets hears nothing");
    }

    // And all is well with the next driver.
    let queues: Vec<_> = drivers.iter().collect();
    let transport = TestTransport::new();
    blk.start(transport.active(blk.features(), &queues))
        .unwrap();
    let mut machine = Machine {
        blk,
        drivers,
        transport,
    };
    // The chains of before are still available, and are done now.
    disk.write_all(&[6; 2048]).unwrap();
    assert_eq!(machine.drivers[0].wait_used().1, 1025);
    assert_eq!(machine.drivers[1].wait_used().1, 1025);
    assert_eq!(machine.bytes(DATA, 1024), [6; 1024]);
}

#[test]
fn a_fault_waits_for_what_is_in_flight_and_answers_it() {
    if !has_ring() {
        return;
    }
    let (mut machine, mut disk) = Machine::slow(1);
    let head = machine.begin(0, 0, READ, &[(DATA, 512, true)]);
    // A request that is no request.
    machine.drivers[0].descriptor(200, DATA, 1, WRITE, 0);
    machine.drivers[0].offer(200);
    machine.drivers[0].kick();
    thread::sleep(WHILE);
    disk.write_all(&[8; 512]).unwrap();
    machine.transport.expect_fault();
    assert_eq!(machine.drivers[0].take_used(), Some((head, 513)));
    assert_eq!(machine.bytes(DATA, 512), [8; 512]);
    machine.blk.stop();
}

#[test]
fn a_head_in_flight_is_not_taken_twice() {
    if !has_ring() {
        return;
    }
    let (mut machine, mut disk) = Machine::slow(1);
    let head = machine.begin(0, 0, READ, &[(DATA, 512, true)]);
    thread::sleep(WHILE);
    machine.drivers[0].offer(head);
    machine.drivers[0].kick();
    thread::sleep(WHILE);
    disk.write_all(&[8; 512]).unwrap();
    machine.transport.expect_fault();
    assert_eq!(machine.drivers[0].used_index(), 1);
}

#[test]
fn no_queue_waits_for_another() {
    if !has_ring() {
        return;
    }
    let (mut machine, mut disk) = Machine::slow(4);
    machine.begin(0, 100, READ, &[(DATA, 512, true)]);
    thread::sleep(WHILE);
    for queue in 1..4 {
        assert_eq!(
            machine.ask_on(queue, 1, 0, &[(DATA + 0x1000, 512, false)]),
            (OK, 1)
        );
    }
    assert_eq!(machine.status(100), PENDING);
    disk.write_all(&[1; 512]).unwrap();
    machine.drivers[0].wait_used();
    assert_eq!(machine.counter("writes"), 3);
}

#[test]
fn every_queue_that_is_enabled_is_served() {
    on_each(|kind| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 * 512).unwrap();
        let mut machine = Machine::on(kind, file, 16, 4);
        for queue in 0..4 {
            assert_eq!(machine.ask_on(queue, 0, 3, &[(DATA, 512, true)]), (OK, 513));
        }
        assert_eq!(machine.blk.workers.len(), 4);

        machine.blk.stop();
        let queues: Vec<_> = machine.drivers.iter().collect();
        let mut active = machine.transport.active(machine.blk.features(), &queues);
        active.queues[1] = None;
        machine.blk.start(active).unwrap();
        assert_eq!(machine.blk.workers.len(), 3, "a thread for each");
    });
}
