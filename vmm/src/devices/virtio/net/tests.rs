//! A started card, driven rightly and wrongly.

mod card;
mod hostile;
mod receive;
mod taps;
mod transmit;

use card::{Card, DATA, Ordering};

use super::config::*;
use super::*;
use crate::devices::virtio::test_driver::{PATIENCE, wait};

/// The control queue of a card of so many pairs.
fn ask(card: &mut Card, command: &[u8], answer: u32) -> Option<u8> {
    let control = card.drivers.len() - 1;
    card.write(DATA, command);
    card.write(DATA + 0x100, &[0xee]);
    let head = card.offer(
        control,
        &[
            (DATA, command.len() as u32, false),
            (DATA + 0x100, answer, true),
        ],
    );
    assert_eq!(card.drivers[control].wait_used(), (head, 1));
    card.bytes(DATA + 0x100, 1).first().copied()
}

#[test]
fn the_configuration_says_what_it_is() {
    let card = Card::new(4, 64, u64::MAX);
    assert_eq!(card.net.kind(), Kind::Net);
    assert_eq!(card.net.queue_sizes(), [256; 9]);
    assert_eq!(
        *card.net.config(),
        [2, 0, 0, 0, 0, 1, 1, 0, 4, 0, 0xdc, 0x05]
    );
    let one = Card::without(0);
    assert_eq!(one.net.queue_sizes(), [256; 2]);
    assert_eq!(one.net.features() & (F_MQ | F_CTRL_VQ), 0);
}

#[test]
fn a_made_up_address_is_a_station_s_and_local() {
    let macs: Vec<_> = (0..64).map(|_| random_mac().unwrap()).collect();
    assert!(macs.iter().all(|mac| mac[0] & 3 == 2), "{macs:?}");
    assert_ne!(macs[0], macs[1]);
}

#[test]
fn the_tap_does_what_the_driver_took() {
    let card = Card::without(0);
    assert_eq!(
        card.port.offloads.load(Ordering::SeqCst),
        offloads(u64::MAX)
    );
    let card = Card::without(F_GUEST_CSUM);
    assert_eq!(card.port.offloads.load(Ordering::SeqCst), 0);
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let mut card = Card::new(4, 64, u64::MAX);
    let used = |card: &Card| card.port.used.load(Ordering::SeqCst);
    assert_eq!(used(&card), 1, "until it says so");
    for pairs in [4_u8, 2, 1, 3] {
        assert_eq!(ask(&mut card, &[4, 0, pairs, 0], 1), Some(0));
        assert_eq!(used(&card), usize::from(pairs));
    }
    // Every pair that is used works.
    for pair in 0..3 {
        card.write(DATA, &card::packet(7, 100));
        let head = card.offer(2 * pair + 1, &[(DATA, 112, false)]);
        assert_eq!(card.drivers[2 * pair + 1].wait_used(), (head, 0));
        let mut packet = [0; 200];
        assert_eq!(card.wires[pair].recv(&mut packet).unwrap(), 112);
        let head = card.offer(2 * pair, &[(DATA, 2000, true)]);
        card.wires[pair].send(&packet[..112]).unwrap();
        assert_eq!(card.drivers[2 * pair].wait_used(), (head, 112));
    }
    // After a reset it is one again.
    card.net.stop();
    card.start();
    assert_eq!(used(&card), 1);
}

#[test]
fn any_other_command_has_failed() {
    let mut card = Card::new(2, 64, u64::MAX);
    for command in [
        &[4, 0, 0, 0][..],
        &[4, 0, 3, 0],
        &[4, 0, 1, 0x80],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
        &[4, 1, 1, 0],
        &[0, 0, 1],
        &[5, 0, 1, 0],
        &[0xff, 0xff, 0xff, 0xff],
        &[4],
    ] {
        assert_eq!(ask(&mut card, command, 1), Some(1), "{command:?}");
    }
    assert_eq!(card.port.used.load(Ordering::SeqCst), 1);
    assert!(!card.transport.faulted());
    // Nowhere to put the answer.
    card.offer(4, &[(DATA, 4, false)]);
    card.transport.expect_fault();
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let mut card = Card::new(2, 64, !F_MQ);
    card.write(DATA, &[4, 0, 2, 0]);
    let head = card.offer(2, &[(DATA, 4, false), (DATA + 0x100, 1, true)]);
    assert_eq!(card.drivers[2].wait_used(), (head, 1));
    assert_eq!(card.bytes(DATA + 0x100, 1), [1], "it did not take them");
}

#[test]
fn a_card_without_its_first_pair_does_not_start() {
    let mut card = Card::without(0);
    card.net.stop();
    for missing in [card::RX, card::TX] {
        let drivers: Vec<_> = card.drivers.iter().collect();
        let mut active = card.transport.active(0, &drivers);
        active.queues[missing] = None;
        let started = card.net.start(active);
        assert!(matches!(started, Err(StartError::MissingQueue(index)) if index == missing));
    }
}

#[test]
fn when_the_far_end_is_gone_the_link_is_down_and_the_card_lives() {
    let mut card = Card::new(2, 64, u64::MAX);
    assert_eq!(card.net.config_generation(), 0);
    card.wires.clear();
    assert!(wait(&card.transport.config, PATIENCE), "nobody was told");
    assert_eq!(card.net.config()[6..8], [0, 0]);
    assert_eq!(card.net.config_generation(), 1);
    assert!(!card.transport.faulted());
    // What it sends goes nowhere, but it gets its buffers back.
    for _ in 0..100 {
        let head = card.offer(card::TX, &[(DATA, 112, false)]);
        assert_eq!(card.drivers[card::TX].wait_used(), (head, 0));
    }
    assert_eq!(card.counter("tx_dropped"), 100);
    card.room(DATA, 2000);
    // It is no other link after a reset, and the driver hears of it no second time: it reads that first.
    card.net.stop();
    card.start();
    assert_eq!(card.net.config()[6..8], [0, 0]);
    let head = card.offer(card::TX, &[(DATA, 112, false)]);
    assert_eq!(card.drivers[card::TX].wait_used(), (head, 0));
    assert!(card.transport.config.read().is_err());
}
