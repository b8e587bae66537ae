//! A guest that means harm.

use std::os::unix::net::UnixDatagram;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::card::{Card, DATA, Ordering, RX, TX, packet};
use super::*;
use crate::devices::virtio::test_driver::{NEXT, Random, WRITE};

/// The card asks for a reset, and works after it.
fn faults_and_recovers(mut card: Card, what: &str) {
    println!("{what}");
    card.transport.expect_fault();
    card.net.stop();
    card.start();
    works(&mut card);
}

/// A packet goes each way.
fn works(card: &mut Card) {
    card.write(DATA, &packet(3, 100));
    let head = card.offer(TX, &[(DATA, 112, false)]);
    assert_eq!(card.drivers[TX].wait_used(), (head, 0));
    // What was sent before a reset may still be on the wire.
    while card.sent() != packet(3, 100) {}
    let head = card.room(DATA, 2000);
    card.wires[0].send(&packet(4, 200)).unwrap();
    assert_eq!(card.drivers[RX].wait_used(), (head, 212));
}

#[test]
fn chains_that_cannot_hold_a_header_ask_for_a_reset() {
    for (queue, buffers, what) in [
        (TX, &[(DATA, 11, false)][..], "a header cut short"),
        (TX, &[(DATA, 1000, true)], "nothing to read"),
        (TX, &[(DATA, 0, false)], "a buffer of no bytes"),
        (TX, &[(1 << 40, 100, false)], "outside of memory"),
        (RX, &[(DATA, 11, true)], "no room for a header"),
        (RX, &[(DATA, 1000, false)], "no room at all"),
        (RX, &[(DATA, 0, true)], "room of no bytes"),
        (RX, &[(1 << 40, 100, true)], "outside of memory"),
    ] {
        let mut card = Card::without(0);
        card.offer(queue, buffers);
        faults_and_recovers(card, what);
    }
}

#[test]
fn a_head_that_is_in_flight_is_not_taken_twice_and_a_loop_is_not_followed() {
    for (queue, flags, times) in [(RX, WRITE, 2), (TX, NEXT, 1)] {
        let mut card = Card::without(0);
        card.drivers[queue].descriptor(0, DATA, 2000, flags, 0);
        for _ in 0..times {
            card.drivers[queue].offer(0);
        }
        card.drivers[queue].kick();
        faults_and_recovers(card, "the same again");
    }
}

#[test]
fn a_reset_comes_at_any_moment() {
    let mut card = Card::new(1, 64, u64::MAX);
    let flood = card.wires[0].try_clone().unwrap();
    flood.set_nonblocking(true).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let flooding = std::thread::spawn({
        let done = done.clone();
        move || {
            while !done.load(Ordering::SeqCst) {
                // Long enough to be half delivered at times.
                if flood.send(&packet(1, 30_000)).is_err() {
                    std::thread::yield_now();
                }
                let _ = drain_one(&flood);
            }
        }
    });
    let mut random = Random::new(5);
    for _ in 0..100 {
        for at in 0..8 {
            card.room(DATA + at * 0x2000, 0x1000 + random.below(0x1000) as u32);
            card.offer(TX, &[(DATA, 3000, false)]);
        }
        std::thread::sleep(Duration::from_micros(random.below(1500)));
        card.net.stop();
        let before = [RX, TX].map(|queue| card.drivers[queue].used_index());
        let bytes = card.bytes(DATA, 0x10000);
        std::thread::sleep(Duration::from_micros(300));
        let after = [RX, TX].map(|queue| card.drivers[queue].used_index());
        assert_eq!(before, after);
        assert!(bytes == card.bytes(DATA, 0x10000), "it is still written to");
        card.start();
    }
    done.store(true, Ordering::SeqCst);
    flooding.join().unwrap();
    assert!(!card.transport.faulted());
    card.net.stop();
    while drain_one(&card.wires[0]).is_ok() {}
    card.wires[0].set_nonblocking(false).unwrap();
    card.start();
    works(&mut card);
}

fn drain_one(wire: &UnixDatagram) -> std::io::Result<usize> {
    wire.recv(&mut [0; 64])
}

#[test]
fn anything_in_any_queue_is_a_fault_or_an_answer() {
    let mut random = Random::new(11);
    let mut card = Card::new(2, 16, u64::MAX);
    let wires: Vec<_> = (card.wires.iter())
        .map(|wire| wire.try_clone().unwrap())
        .collect();
    wires
        .iter()
        .for_each(|wire| wire.set_nonblocking(true).unwrap());
    for round in 0..400 {
        for _ in 0..40 {
            let queue = random.below(5) as usize;
            let driver = &mut card.drivers[queue];
            let writable = queue.is_multiple_of(2);
            let len = [1, 4, 12, 100, 2000, 0x20000][random.below(6) as usize];
            let addr = match random.below(60) {
                0 => random.next(),
                _ => DATA + random.below(0x1_0000),
            };
            match random.below(40) {
                0 => driver.set_avail(random.next() as u16),
                1 => driver.offer(random.next() as u16),
                2 => {
                    let flags = random.below(8) as u16;
                    driver.descriptor(random.below(16) as u16, addr, len, flags, 3);
                }
                _ => {
                    let buffers = [(addr, len, writable && queue != 4), (DATA, 64, writable)];
                    let _ = driver.add(&buffers[..1 + random.below(2) as usize]);
                }
            }
            driver.kick();
            while driver.take_used().is_some() {}
            let wire = &wires[random.below(2) as usize];
            let _ = wire.send(&packet(1, random.below(9000) as usize));
            let _ = drain_one(wire);
        }
        if round % 4 == 0 {
            card.net.stop();
            card.start();
        }
    }
    card.net.stop();
    wires
        .iter()
        .for_each(|wire| while drain_one(wire).is_ok() {});
    card.wires[0].set_nonblocking(false).unwrap();
    card.start();
    works(&mut card);
}

#[test]
fn a_guest_that_never_stops_sending_gets_packets_and_is_reset_at_once() {
    let mut card = Card::without(0);
    let mut tx = card.drivers.remove(TX);
    let done = Arc::new(AtomicBool::new(false));
    let over = |done: &AtomicBool| done.load(Ordering::SeqCst);
    let sending = std::thread::spawn({
        let done = done.clone();
        move || {
            while !over(&done) {
                while tx.add(&[(DATA + 0x1_0000, 60, false)]).is_some() {}
                tx.kick();
                while tx.take_used().is_some() {}
            }
        }
    });
    let sink = card.wires[0].try_clone().unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(10)))
        .unwrap();
    let taking = std::thread::spawn({
        let done = done.clone();
        move || {
            while !over(&done) {
                let _ = drain_one(&sink);
            }
        }
    });
    for number in 0..100 {
        let head = card.room(DATA, 2000);
        card.wires[0].send(&packet(number, 300)).unwrap();
        assert_eq!(card.drivers[RX].wait_used(), (head, 312));
    }
    assert!(card.counter("tx_packets") > 0);
    // It still sends.
    let start = Instant::now();
    card.net.stop();
    assert!(start.elapsed() < Duration::from_secs(5));
    done.store(true, Ordering::SeqCst);
    sending.join().unwrap();
    taking.join().unwrap();
    assert!(!card.transport.faulted());
}
