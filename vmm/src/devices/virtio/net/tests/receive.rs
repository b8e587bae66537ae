//! Packets to the guest.

use super::card::{Card, DATA, RX, packet};
use super::*;

/// The header's num_buffers.
fn buffers(header: &[u8]) -> u16 {
    u16::from_le_bytes([header[10], header[11]])
}

#[test]
fn a_packet_goes_into_a_buffer() {
    for without in [0, F_MRG_RXBUF, crate::devices::virtio::F_RING_EVENT_IDX] {
        let mut card = Card::without(without);
        for number in 0..200 {
            let head = card.room(DATA, 2000);
            let sent = packet(number, 500);
            card.wires[0].send(&sent).unwrap();
            assert_eq!(card.drivers[RX].wait_used(), (head, 512));
            let got = card.bytes(DATA, 513);
            assert_eq!(buffers(&got), 1);
            assert_eq!(got[12..512], sent[12..]);
            assert_eq!(got[512], 0);
        }
        assert_eq!(card.counter("rx_packets"), 200);
        assert_eq!(card.counter("rx_bytes"), 200 * 500);
        assert_eq!(card.counter("rx_dropped"), 0);
    }
}

#[test]
fn a_header_is_split_over_buffers_like_the_rest() {
    let mut card = Card::without(0);
    let head = card.offer(
        RX,
        &[
            (DATA, 11, true),
            (DATA + 100, 1, true),
            (DATA + 200, 900, true),
        ],
    );
    card.write(DATA, &[0xff; 11]);
    card.wires[0].send(&packet(1, 20)).unwrap();
    assert_eq!(card.drivers[RX].wait_used(), (head, 32));
    assert_eq!(card.bytes(DATA, 11), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(card.bytes(DATA + 100, 1), [0]);
    assert_eq!(card.bytes(DATA + 200, 20), packet(1, 20)[12..]);
}

#[test]
fn a_driver_that_takes_no_unfinished_checksums_gets_no_flags() {
    for (without, flags) in [(0, 3), (F_GUEST_CSUM, 0)] {
        let mut card = Card::without(without);
        let head = card.room(DATA, 2000);
        let mut sent = packet(1, 100);
        sent[0] = 3;
        card.wires[0].send(&sent).unwrap();
        assert_eq!(card.drivers[RX].wait_used(), (head, 112));
        assert_eq!(card.bytes(DATA, 1), [flags]);
    }
}

#[test]
fn a_long_packet_goes_over_several_buffers_which_come_at_once() {
    for (buffer, len) in [(1000, 2500), (1024, 64 * 1024), (4096, 65_000), (13, 100)] {
        let mut card = Card::new(1, 256, u64::MAX);
        let chains = (len + 12_usize).div_ceil(buffer);
        let heads: Vec<_> = (0..chains + 3)
            .map(|at| card.room(DATA + (at * buffer) as u64, buffer as u32))
            .collect();
        let sent = packet(9, len);
        card.wires[0].send(&sent).unwrap();
        let mut left = sent.len();
        for head in &heads[..chains] {
            let part = left.min(buffer);
            left -= part;
            if *head != heads[0] {
                let index = card.drivers[RX].used_index();
                assert_eq!(usize::from(index), chains, "with the first");
            }
            assert_eq!(card.drivers[RX].wait_used(), (*head, part as u32));
        }
        let got = card.bytes(DATA, sent.len());
        assert_eq!(usize::from(buffers(&got)), chains);
        assert!(got[12..] == sent[12..], "{buffer}");
        // What was not needed is there for the next.
        let next = packet(10, 1);
        card.wires[0].send(&next).unwrap();
        assert_eq!(card.drivers[RX].wait_used(), (heads[chains], 13));
        assert_eq!(card.counter("rx_dropped"), 0);
    }
}

#[test]
fn a_packet_for_which_there_is_not_room_enough_waits_for_the_rest() {
    let mut card = Card::without(0);
    let sent = packet(5, 60_000);
    let part = 9000;
    let chains = sent.len().div_ceil(part);
    let mut heads = vec![card.room(DATA, part as u32)];
    card.wires[0].send(&sent).unwrap();
    card.wires[0].send(&packet(6, 30)).unwrap();
    for at in 1..=chains {
        std::thread::sleep(std::time::Duration::from_millis(5));
        if at < chains {
            assert_eq!(card.drivers[RX].used_index(), 0, "it is not whole yet");
        }
        heads.push(card.room(DATA + (at * part) as u64, part as u32));
    }
    let mut left = sent.len();
    for head in &heads[..chains] {
        let used = left.min(part);
        left -= used;
        assert_eq!(card.drivers[RX].wait_used(), (*head, used as u32));
    }
    assert_eq!(card.drivers[RX].wait_used(), (heads[chains], 42));
    let got = card.bytes(DATA, sent.len());
    assert_eq!(usize::from(buffers(&got)), chains);
    assert!(got[12..] == sent[12..]);
}

#[test]
fn a_packet_that_is_longer_than_all_that_the_driver_can_offer_is_dropped() {
    let mut card = Card::new(1, 8, u64::MAX);
    card.wires[0].send(&packet(1, 5000)).unwrap();
    let heads: Vec<_> = (0..8).map(|at| card.room(DATA + at * 0x400, 100)).collect();
    card.until("rx_dropped", 1);
    card.wires[0].send(&packet(2, 150)).unwrap();
    for (head, len) in [(heads[0], 100), (heads[1], 62)] {
        assert_eq!(card.drivers[RX].wait_used(), (head, len));
    }
    assert_eq!(card.bytes(DATA + 12, 1), [2]);
}

#[test]
fn without_mergeable_buffers_a_packet_fits_into_one_or_is_dropped() {
    let mut card = Card::without(F_MRG_RXBUF);
    let first = card.room(DATA, 500);
    let second = card.room(DATA + 0x1000, 500);
    for (number, len) in [(1, 489), (2, 40_000), (3, 488), (4, 1)] {
        card.wires[0].send(&packet(number, len)).unwrap();
    }
    assert_eq!(card.drivers[RX].wait_used(), (first, 500));
    assert_eq!(card.drivers[RX].wait_used(), (second, 13));
    assert_eq!(card.bytes(DATA + 12, 1), [3]);
    assert_eq!(card.bytes(DATA + 0x100c, 1), [4]);
    assert_eq!(card.counter("rx_dropped"), 2);
}

#[test]
fn what_is_no_packet_is_dropped() {
    let mut card = Card::without(0);
    let head = card.room(DATA, 0x20000);
    let too_long = vec![1; PACKET_MAX + 1];
    for sent in [&[0u8; 0][..], &[1; 11], &too_long, &packet(8, 60)] {
        card.wires[0].send(sent).unwrap();
    }
    assert_eq!(card.drivers[RX].wait_used(), (head, 72));
    assert_eq!(card.counter("rx_dropped"), 3);
}

#[test]
fn nothing_is_read_before_there_is_room_and_then_all_in_order() {
    let mut card = Card::without(0);
    card.wires[0].set_nonblocking(true).unwrap();
    // A flood: as much as the wire takes, and no more of it is taken out.
    let mut sent = 0;
    for _ in 0..2 {
        while card.wires[0].send(&packet(sent, 3000)).is_ok() {
            sent += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(sent > 1);
    for number in 0..sent {
        let head = card.room(DATA, 4000);
        assert_eq!(card.drivers[RX].wait_used(), (head, 3012));
        assert_eq!(card.bytes(DATA + 12, 1), [number]);
    }
    assert_eq!(card.counter("rx_packets"), u64::from(sent));
    assert_eq!(card.counter("rx_dropped"), 0);
}

#[test]
fn what_came_before_the_driver_is_not_its() {
    let mut card = Card::without(0);
    card.net.stop();
    card.wires[0].send(&packet(1, 100)).unwrap();
    card.start();
    let head = card.room(DATA, 2000);
    card.wires[0].send(&packet(2, 50)).unwrap();
    assert_eq!(card.drivers[RX].wait_used(), (head, 62));
    assert_eq!(card.bytes(DATA + 12, 1), [2]);
}
