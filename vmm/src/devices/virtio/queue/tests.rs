//! Rings, laid out and driven rightly and wrongly.

use std::sync::Arc;

use super::*;
use crate::devices::virtio::test_driver::{TestQueue, WRITE, assert_err, ram, wait};

const SIZE: u16 = 8;
/// Where buffers may lie, out of the way of the rings.
const DATA: u64 = 0x4000;
const RAM: usize = 0x10000;

fn rings() -> TestQueue {
    TestQueue::new(&ram(RAM), 0x1000, SIZE, false)
}

fn lay_out(change: impl FnOnce(&mut Layout)) -> Result<Queue, Error> {
    let driver = rings();
    let mut layout = driver.layout;
    change(&mut layout);
    Queue::new(256, layout, true, &driver.memory)
}

#[test]
fn a_queue_that_is_laid_out_well_is_taken() {
    assert_eq!(lay_out(|_| ()).unwrap().size(), SIZE);
    assert_eq!(lay_out(|l| l.size = 1).unwrap().size(), 1);
    assert_eq!(lay_out(|l| l.size = 256).unwrap().size(), 256);
}

#[test]
fn wrong_sizes_are_refused() {
    for size in [0, 3, 9, 255, 257, 512, 32768, 65535] {
        assert_err!(lay_out(|l| l.size = size), Error::Invalid);
    }
}

#[test]
fn misaligned_rings_are_refused() {
    assert_err!(lay_out(|l| l.descriptors.0 += 8), Error::Invalid);
    assert_err!(lay_out(|l| l.driver.0 += 1), Error::Invalid);
    assert_err!(lay_out(|l| l.device.0 += 2), Error::Invalid);
}

#[test]
fn rings_outside_of_ram_or_across_its_end_are_refused() {
    let end = RAM as u64;
    let ends = u64::MAX - 15;
    for addr in [end, end - 16 * u64::from(SIZE) + 16, 1 << 40, ends] {
        assert_err!(lay_out(|l| l.descriptors.0 = addr), Error::Invalid);
    }
    for addr in [end, end - 2 * u64::from(SIZE) - 4, 1 << 40, ends] {
        assert_err!(lay_out(|l| l.driver.0 = addr), Error::Invalid);
    }
    for addr in [end, end - 8 * u64::from(SIZE) - 4, 1 << 40, ends] {
        assert_err!(lay_out(|l| l.device.0 = addr), Error::Invalid);
    }
    // The last places where they fit.
    assert!(lay_out(|l| l.descriptors.0 = end - 16 * u64::from(SIZE)).is_ok());
    assert!(lay_out(|l| l.driver.0 = end - 2 * u64::from(SIZE) - 6).is_ok());
    assert!(lay_out(|l| l.device.0 = end - 8 * u64::from(SIZE) - 8).is_ok());
}

#[test]
fn a_ring_or_buffer_across_a_hole_between_regions_is_refused() {
    let memory = Arc::new(
        crate::memory::anonymous(&[
            (GuestAddress(0), 0x4000),
            (GuestAddress(0x8000), 0x1000),
            (GuestAddress(0x9000), 0x1000),
        ])
        .unwrap(),
    );
    let mut driver = TestQueue::new(&memory, 0x1000, SIZE, false);
    for at in [0x3fc0, 0x7fc0] {
        let layout = Layout {
            descriptors: GuestAddress(at),
            ..driver.layout
        };
        assert_err!(Queue::new(8, layout, false, &memory), Error::Invalid);
    }
    driver.descriptor(0, 0x3ff0, 0x20, 0, 0);
    driver.offer(0);
    assert_err!(
        driver.queue().pop(&memory),
        Error::OutsideMemory {
            addr: 0x3ff0,
            len: 0x20
        }
    );

    // Regions that touch each other are no hole: one buffer, two pieces of host memory.
    driver.descriptor(0, 0x8ff0, 0x20, 0, 0);
    let chain = driver.queue().pop(&memory).unwrap().unwrap();
    let pieces = chain.readable_slices(&memory, 8, 100).unwrap();
    let lengths: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
    assert_eq!(lengths, [8, 16]);
}

#[test]
fn an_empty_ring_has_nothing() {
    let driver = rings();
    assert_eq!(driver.queue().pop(&driver.memory).unwrap(), None);
}

#[test]
fn chains_that_belong_together_are_seen_together() {
    for event_idx in [false, true] {
        let mut driver = TestQueue::new(&ram(RAM), 0x1000, SIZE, event_idx);
        let memory = driver.memory.clone();
        let mut queue = driver.queue();
        // Over the end of the ring, and of its index.
        for round in 0..30_000u32 {
            let heads: Vec<_> = (0..3)
                .map(|_| driver.add(&[(DATA, 16, true)]).unwrap())
                .collect();
            let mut used = Vec::new();
            for written in 1..=3 {
                used.push((queue.pop(&memory).unwrap().unwrap().head(), written));
            }
            assert_eq!(driver.take_used(), None);
            queue.complete_together(&memory, &used).unwrap();
            // The driver asked for an interrupt at the first of them.
            assert!(queue.needs_interrupt(&memory).unwrap(), "round {round}");
            for (head, written) in (heads.iter()).zip(1..) {
                assert_eq!(driver.take_used(), Some((*head, written)));
            }
        }
        assert_err!(
            queue.complete_together(&memory, &[(0, 1)]),
            Error::NotInFlight(0)
        );
    }
}

#[test]
fn a_queue_goes_on_where_another_has_stopped() {
    let mut driver = rings();
    let memory = driver.memory.clone();
    let mut first = driver.queue();
    let heads: Vec<_> = (0..4)
        .map(|_| driver.add(&[(DATA, 16, true)]).unwrap())
        .collect();
    for _ in 0..3 {
        first.pop(&memory).unwrap().unwrap();
    }
    first.complete(&memory, heads[0], 1).unwrap();
    let mut second = driver.queue();
    second.resume(&memory).unwrap();
    for head in &heads[1..] {
        let chain = second.pop(&memory).unwrap().unwrap();
        assert_eq!(chain.head(), *head);
        second.complete(&memory, *head, 2).unwrap();
        assert!(second.needs_interrupt(&memory).unwrap());
    }
    assert_eq!(second.pop(&memory).unwrap(), None);
    for (head, written) in heads.into_iter().zip([1, 2, 2, 2]) {
        assert_eq!(driver.take_used(), Some((head, written)));
    }
}

#[test]
fn indices_wrap_around() {
    for event_idx in [false, true] {
        let mut driver = TestQueue::new(&ram(RAM), 0x1000, SIZE, event_idx);
        let memory = driver.memory.clone();
        let mut queue = driver.queue();
        for round in 0..70_000u32 {
            assert!(!queue.enable_kicks(&memory).unwrap());
            let head = driver.add(&[(DATA, 16, true)]).unwrap();
            assert!(queue.enable_kicks(&memory).unwrap());
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.complete(&memory, chain.head(), round % 16).unwrap();
            assert!(queue.needs_interrupt(&memory).unwrap(), "round {round}");
            assert_eq!(driver.take_used(), Some((head, round % 16)));
        }
    }
}

#[test]
fn event_idx_announces_only_what_is_wanted() {
    let mut driver = TestQueue::new(&ram(RAM), 0x1000, SIZE, true);
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    let wanted = |index: u16| {
        let at = driver.layout.driver.0 + 4 + 2 * u64::from(SIZE);
        memory.write_obj(index, GuestAddress(at)).unwrap();
    };
    wanted(2);
    for _ in 0..3 {
        driver.descriptor(0, DATA, 1, WRITE, 0);
    }
    for expected in [false, false, true, false] {
        driver.offer(0);
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.complete(&memory, chain.head(), 0).unwrap();
        assert_eq!(queue.needs_interrupt(&memory).unwrap(), expected);
    }
    // A kick is wanted for the next buffer: the driver's index has reached 4.
    assert!(!queue.enable_kicks(&memory).unwrap());
    let at = driver.layout.device.0 + 4 + 8 * u64::from(SIZE);
    assert_eq!(memory.read_obj::<u16>(GuestAddress(at)).unwrap(), 4);
}

#[test]
fn without_event_idx_the_flag_turns_interrupts_off() {
    let mut driver = rings();
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    for (flag, expected) in [(0u16, true), (1, false), (0, true)] {
        memory.write_obj(flag, driver.layout.driver).unwrap();
        driver.add(&[(DATA, 1, true)]).unwrap();
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.complete(&memory, chain.head(), 0).unwrap();
        assert_eq!(queue.needs_interrupt(&memory).unwrap(), expected);
        driver.take_used().unwrap();
    }
    // And the device's flag turns kicks off.
    queue.disable_kicks(&memory).unwrap();
    assert_eq!(memory.read_obj::<u16>(driver.layout.device).unwrap(), 1);
    queue.enable_kicks(&memory).unwrap();
    assert_eq!(memory.read_obj::<u16>(driver.layout.device).unwrap(), 0);
}

#[test]
fn what_was_not_taken_waits() {
    let mut driver = rings();
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    for _ in 0..2 {
        driver.add(&[(0x4000, 8, false)]).unwrap();
    }
    for waiting in [2, 1, 0] {
        assert_eq!(queue.waiting(&memory).unwrap(), waiting);
        assert_eq!(queue.pop(&memory).unwrap().is_some(), waiting > 0);
    }
    driver.set_avail(SIZE + 3);
    assert_err!(queue.waiting(&memory), Error::Ahead { waiting: 9, .. });
}

#[test]
fn an_index_too_far_ahead_is_an_error() {
    let mut driver = rings();
    driver.set_avail(SIZE + 1);
    assert_err!(
        driver.queue().pop(&driver.memory),
        Error::Ahead {
            waiting: 9,
            size: SIZE
        }
    );
    // Behind is as far ahead as can be.
    driver.set_avail(u16::MAX);
    assert_err!(driver.queue().pop(&driver.memory), Error::Ahead { .. });
}

#[test]
fn a_head_that_does_not_exist_is_an_error() {
    for head in [SIZE, u16::MAX] {
        let mut driver = rings();
        driver.offer(head);
        assert_err!(
            driver.queue().pop(&driver.memory),
            Error::DescriptorIndex { size: SIZE, .. }
        );
    }
}

#[test]
fn a_head_in_flight_is_not_taken_again() {
    let mut driver = rings();
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    driver.descriptor(3, DATA, 1, 0, 0);
    driver.offer(3);
    driver.offer(3);
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_err!(queue.pop(&memory), Error::InFlight(3));
    queue.complete(&memory, chain.head(), 0).unwrap();
    assert_err!(
        queue.complete(&memory, chain.head(), 0),
        Error::NotInFlight(3)
    );
    assert_err!(queue.complete(&memory, SIZE, 0), Error::NotInFlight(_));
    assert!(queue.pop(&memory).unwrap().is_some(), "it was given back");
}

#[test]
fn serving_ends_after_a_queue_s_length_of_chains() {
    let mut driver = rings();
    let memory = driver.memory.clone();
    let mut active = driver.active();
    for _ in 0..SIZE {
        driver.add(&[(DATA, 1, true)]).unwrap();
    }
    let mut served = 0;
    // A driver that refills while it is served.
    let more = active
        .serve::<Error>(&memory, |_| {
            served += 1;
            driver.take_used();
            driver.add(&[(DATA, 1, true)]);
            Ok(1)
        })
        .unwrap();
    assert!(more);
    assert_eq!(served, SIZE);
    assert!(wait(&driver.interrupt, std::time::Duration::ZERO));
    let more = active.serve::<Error>(&memory, |_| Ok(1)).unwrap();
    assert!(!more);
    let flags: u16 = memory.read_obj(driver.layout.device).unwrap();
    assert_eq!(flags, 0, "kicks are on again");
}
