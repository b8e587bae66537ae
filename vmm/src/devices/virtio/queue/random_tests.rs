//! Rings full of nonsense that looks nearly right. Whatever comes out must keep what a chain promises.

use super::*;
use crate::devices::virtio::test_driver::{INDIRECT, NEXT, Random, TestQueue, WRITE, ram};

const SIZE: u16 = 16;
const RAM: u64 = 0x10000;

#[test]
fn whatever_the_rings_say_a_chain_keeps_its_promises() {
    let mut random = Random::new(1);
    let mut chains = 0;
    let mut errors = 0;
    for _ in 0..20_000 {
        let mut driver = TestQueue::new(&ram(RAM as usize), 0x1000, SIZE, random.one_in(2));
        // Twice: what an indirect table may be taken for lies behind the descriptor table.
        for index in 0..2 * SIZE {
            let addr = match random.below(12) {
                0 => random.next(),
                1 => RAM - random.below(64),
                2 => driver.layout.descriptors.0 + 16 * random.below(64),
                _ => random.below(RAM - 0x100),
            };
            let len = match random.below(12) {
                0 => random.next() as u32,
                1 => 0,
                2..5 => 16 * random.below(20) as u32,
                _ => 1 + random.below(0x100) as u32,
            };
            let mut flags = random.below(4) as u16 & (NEXT | WRITE);
            if random.one_in(4) {
                flags = INDIRECT;
            }
            let bound = if random.one_in(20) {
                65536
            } else {
                SIZE.into()
            };
            let next = random.below(bound);
            driver.descriptor(index, addr, len, flags, next as u16);
        }
        for _ in 0..random.below(u64::from(SIZE) + 2) {
            let bound = if random.one_in(30) {
                65536
            } else {
                SIZE.into()
            };
            driver.offer(random.below(bound) as u16);
        }
        let memory = driver.memory.clone();
        let mut queue = driver.queue();
        let mut taken = Vec::new();
        loop {
            match queue.pop(&memory) {
                Ok(None) => break,
                Ok(Some(chain)) => {
                    check(&chain, &memory);
                    assert!(!taken.contains(&chain.head()));
                    chains += 1;
                    if random.one_in(2) {
                        queue.complete(&memory, chain.head(), 1).unwrap();
                        queue.needs_interrupt(&memory).unwrap();
                    } else {
                        taken.push(chain.head());
                    }
                }
                Err(_) => {
                    errors += 1;
                    break;
                }
            }
        }
    }
    // Both happened often, or this tests nothing.
    assert!(chains > 2000 && errors > 2000, "{chains} {errors}");
}

fn check(chain: &Chain, memory: &GuestMemory) {
    let segments = || chain.readable().iter().chain(chain.writable());
    assert!(chain.head() < SIZE);
    assert!((1..=usize::from(SIZE)).contains(&segments().count()));
    for segment in segments() {
        assert!(segment.len > 0);
        assert!(segment.addr.0 + u64::from(segment.len) <= RAM);
    }
    let (readable, writable) = (chain.readable_len(), chain.writable_len());
    let all = chain.readable_slices(memory, 0, usize::MAX).unwrap();
    assert_eq!(all.iter().map(|s| s.len()).sum::<usize>(), readable);
    // Reading and writing end where the chain does.
    assert!(chain.read_at(memory, 0, &mut vec![0; readable]).is_ok());
    assert!(chain.read_at(memory, 1, &mut vec![0; readable]).is_err() || readable == 0);
    assert!(chain.write_at(memory, writable, &[1]).is_err());
}
