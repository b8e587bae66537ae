//! Packets from the guest.

use super::card::{Card, DATA, TX, packet};
use super::*;

#[test]
fn a_packet_goes_out_as_it_is() {
    for without in [0, crate::devices::virtio::F_RING_EVENT_IDX] {
        let mut card = Card::without(without);
        for number in 0..200 {
            let mut sent = packet(number, 1000);
            sent[..12].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0]);
            card.write(DATA, &sent);
            let head = card.offer(
                TX,
                &[
                    (DATA, 5, false),
                    (DATA + 5, 100, false),
                    (DATA + 105, 907, false),
                ],
            );
            assert_eq!(card.drivers[TX].wait_used(), (head, 0));
            assert!(card.sent() == sent);
        }
        assert_eq!(card.counter("tx_packets"), 200);
        assert_eq!(card.counter("tx_bytes"), 200_000);
    }
}

#[test]
fn the_longest_packet_goes_out_and_a_longer_one_is_dropped() {
    let mut card = Card::without(0);
    let longest = PACKET_MAX as u32;
    let too_long = [(DATA, longest, false), (DATA, 1, false)];
    for buffers in [&too_long[..], &too_long[..1]] {
        let head = card.offer(TX, buffers);
        assert_eq!(card.drivers[TX].wait_used(), (head, 0));
    }
    assert_eq!(card.sent().len(), PACKET_MAX);
    assert_eq!(card.counter("tx_dropped"), 1);
    // 4 GiB less a little.
    let huge = vec![(0, 0x80_0000, false); 60];
    let head = card.offer(TX, &huge);
    assert_eq!(card.drivers[TX].wait_used(), (head, 0));
    assert_eq!(card.counter("tx_dropped"), 2);
}

#[test]
fn a_full_tap_is_waited_for() {
    let mut card = Card::without(0);
    let count = 40;
    for number in 0..count {
        card.write(DATA + u64::from(number) * 0x1000, &packet(number, 50));
        card.offer(TX, &[(DATA + u64::from(number) * 0x1000, 62, false)]);
    }
    // Some are out, the others are neither lost nor dropped.
    for number in 0..count {
        let sent = card.sent();
        assert_eq!((sent[12], sent.len()), (number, 62));
    }
    card.until("tx_packets", count.into());
    assert_eq!(card.counter("tx_dropped"), 0);
}

#[test]
fn a_full_tap_does_not_keep_packets_from_the_guest_away() {
    let mut card = Card::without(0);
    card.wires[0].set_nonblocking(true).unwrap();
    // More than a wire holds: the device is stuck with one.
    let mut sent = 0;
    while let Some(head) = card.drivers[TX].add(&[(DATA, 4000, false)]) {
        card.drivers[TX].kick();
        sent += 1;
        if sent < 5 {
            assert_eq!(card.drivers[TX].wait_used(), (head, 0));
        }
    }
    for number in 0..20 {
        let head = card.room(DATA + 0x2000, 2000);
        card.wires[0].send(&packet(number, 10)).unwrap();
        assert_eq!(card.drivers[card::RX].wait_used(), (head, 22));
    }
}
