//! Chains of descriptors, well made and badly.

use std::sync::Arc;

use super::*;
use crate::devices::virtio::test_driver::{
    INDIRECT, NEXT, TestQueue, WRITE, assert_err, ram, write_descriptor,
};

const SIZE: u16 = 8;
/// Where buffers may lie, out of the way of the rings.
const DATA: u64 = 0x4000;
const TABLE: u64 = 0x6000;
const RAM: usize = 0x10000;

fn rings() -> TestQueue {
    TestQueue::new(&ram(RAM), 0x1000, SIZE, false)
}

/// What the device says to the chain that begins at descriptor 0 and was written by `write`.
fn pop(write: impl FnOnce(&TestQueue)) -> Result<Option<Chain>, Error> {
    let mut driver = rings();
    write(&driver);
    driver.offer(0);
    driver.queue().pop(&driver.memory)
}

/// Like [`pop`] with descriptor 0 referring to an indirect table of `entries`: addr, len, flags, next.
fn pop_indirect(len: u32, entries: &[(u64, u32, u16, u16)]) -> Result<Option<Chain>, Error> {
    pop(|driver| {
        driver.descriptor(0, TABLE, len, INDIRECT, 0);
        for (i, (addr, len, flags, next)) in entries.iter().enumerate() {
            let at = TABLE + 16 * i as u64;
            write_descriptor(&driver.memory, at, *addr, *len, *flags, *next);
        }
    })
}

#[test]
fn a_direct_chain_is_read_and_written() {
    let mut driver = rings();
    let memory = driver.memory.clone();
    let mut queue = driver.queue();
    memory.write_slice(b"hello, ", GuestAddress(DATA)).unwrap();
    memory
        .write_slice(b"device", GuestAddress(DATA + 0x100))
        .unwrap();
    let buffers = [
        (DATA, 7, false),
        (DATA + 0x100, 6, false),
        (DATA + 0x200, 2, true),
        (DATA + 0x300, 8, true),
    ];
    let head = driver.add(&buffers).unwrap();
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (13, 10));

    let mut text = [0; 13];
    chain.read_at(&memory, 0, &mut text).unwrap();
    assert_eq!(&text, b"hello, device");
    let mut part = [0; 4];
    chain.read_at(&memory, 5, &mut part).unwrap();
    assert_eq!(&part, b", de");
    assert_err!(
        chain.read_at(&memory, 10, &mut part),
        Error::Short { need: 14, have: 13 }
    );
    assert_err!(
        chain.read_at(&memory, usize::MAX, &mut part),
        Error::Short { .. }
    );

    chain.write_at(&memory, 0, b"ok").unwrap();
    chain.write_at(&memory, 1, b"k, host").unwrap();
    assert_err!(chain.write_at(&memory, 8, b"abc"), Error::Short { .. });
    queue.complete(&memory, chain.head(), 8).unwrap();
    assert_eq!(driver.take_used(), Some((head, 8)));
    let mut answer = [0; 6];
    memory
        .read_slice(&mut answer, GuestAddress(DATA + 0x300))
        .unwrap();
    assert_eq!(&answer, b", host");
}

#[test]
fn an_indirect_chain_is_read() {
    let table = [(DATA, 4, NEXT, 2), (0, 0, 0, 0), (DATA + 64, 5, WRITE, 0)];
    let chain = pop_indirect(48, &table).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (4, 5));

    // The flag WRITE of the entry that refers to the table means nothing (2.7.5.3.2).
    let chain = pop(|driver| {
        driver.descriptor(0, TABLE, 16, INDIRECT | WRITE, 0);
        write_descriptor(&driver.memory, TABLE, DATA, 4, 0, 0);
    });
    assert_eq!(chain.unwrap().unwrap().readable_len(), 4);
}

#[test]
fn a_chain_may_end_in_an_indirect_table() {
    let chain = pop(|driver| {
        driver.descriptor(0, DATA, 4, NEXT, 1);
        driver.descriptor(1, TABLE, 16, INDIRECT, 0);
        write_descriptor(&driver.memory, TABLE, DATA, 4, WRITE, 0);
    });
    let chain = chain.unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (4, 4));
}

#[test]
fn a_next_that_does_not_exist_is_an_error() {
    assert_err!(
        pop(|driver| driver.descriptor(0, DATA, 1, NEXT, SIZE)),
        Error::DescriptorIndex { .. }
    );
    assert_err!(
        pop_indirect(32, &[(DATA, 1, NEXT, 2), (DATA, 1, 0, 0)]),
        Error::DescriptorIndex { index: 2, size: 2 }
    );
}

#[test]
fn cycles_end() {
    // To itself, to the head, and a longer way round.
    assert_err!(
        pop(|driver| driver.descriptor(0, DATA, 1, NEXT, 0)),
        Error::TooLong(SIZE)
    );
    assert_err!(
        pop(|driver| {
            for i in 0..SIZE {
                driver.descriptor(i, DATA, 1, NEXT, (i + 1) % SIZE);
            }
        }),
        Error::TooLong(SIZE)
    );
    assert_err!(
        pop_indirect(32, &[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)]),
        Error::TooLong(SIZE)
    );
}

#[test]
fn a_chain_is_at_most_as_long_as_its_queue() {
    let table = |length: u16| -> Vec<_> {
        (1..=length)
            .map(|i| (DATA, 1, if i == length { 0 } else { NEXT }, i))
            .collect()
    };
    let chain = pop_indirect(16 * 8, &table(8)).unwrap().unwrap();
    assert_eq!(chain.readable().len(), 8);
    assert_err!(pop_indirect(16 * 9, &table(9)), Error::TooLong(SIZE));

    let chain = pop(|driver| {
        for i in 0..SIZE {
            let flags = if i + 1 == SIZE { 0 } else { NEXT };
            driver.descriptor(i, DATA, 1, flags, i + 1);
        }
    });
    assert_eq!(chain.unwrap().unwrap().readable_len(), 8);
}

#[test]
fn buffers_without_bytes_are_refused() {
    assert_err!(
        pop(|driver| driver.descriptor(0, DATA, 0, 0, 0)),
        Error::ZeroLength
    );
    assert_err!(pop_indirect(16, &[(DATA, 0, WRITE, 0)]), Error::ZeroLength);
}

#[test]
fn buffers_outside_of_ram_are_refused() {
    let end = RAM as u64;
    for (addr, len) in [
        (end, 1),
        (end - 1, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 0xfff, 0x1000),
        (u64::MAX - 0xffe, 0x1000),
        (1 << 63, u32::MAX),
    ] {
        assert_err!(
            pop(|driver| driver.descriptor(0, addr, len, WRITE, 0)),
            Error::OutsideMemory { .. }
        );
        assert_err!(
            pop_indirect(16, &[(addr, len, 0, 0)]),
            Error::OutsideMemory { .. }
        );
    }
    assert!(pop(|driver| driver.descriptor(0, end - 1, 1, WRITE, 0)).is_ok());
}

#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    // The mapping is only reserved, never touched.
    let memory = Arc::new(crate::memory::anonymous(&[(GuestAddress(0), 3 << 30)]).unwrap());
    let mut driver = TestQueue::new(&memory, 0x1000, SIZE, false);
    driver.descriptor(0, 0, 2 << 30, NEXT, 1);
    driver.descriptor(1, 0, 2 << 30, 0, 0);
    driver.offer(0);
    assert_err!(driver.queue().pop(&memory), Error::TooBig);
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_refused() {
    assert_err!(
        pop(|driver| {
            driver.descriptor(0, DATA, 1, NEXT | WRITE, 1);
            driver.descriptor(1, DATA, 1, 0, 0);
        }),
        Error::Order
    );
}

#[test]
fn bad_indirect_tables_are_refused() {
    let one = [(DATA, 1, 0, 0)];
    for len in [0, 1, 15, 17, 31, u32::MAX, 16 << 16] {
        assert_err!(pop_indirect(len, &one), Error::Indirect);
    }
    // Nested.
    assert_err!(
        pop_indirect(16, &[(TABLE, 16, INDIRECT, 0)]),
        Error::Indirect
    );
    // Continued behind the table.
    assert_err!(
        pop(|driver| {
            driver.descriptor(0, TABLE, 16, INDIRECT | NEXT, 1);
            write_descriptor(&driver.memory, TABLE, DATA, 1, 0, 0);
        }),
        Error::Indirect
    );
    // Outside of RAM, across its end, and across the end of all addresses.
    for at in [RAM as u64, RAM as u64 - 8, u64::MAX - 7] {
        assert_err!(
            pop(|driver| driver.descriptor(0, at, 32, INDIRECT, 0)),
            Error::Memory(_)
        );
    }
    assert_err!(
        pop(|driver| {
            let at = RAM as u64 - 16;
            driver.descriptor(0, at, 32, INDIRECT, 0);
            write_descriptor(&driver.memory, at, DATA, 1, NEXT, 1);
        }),
        Error::Memory(_)
    );
}
