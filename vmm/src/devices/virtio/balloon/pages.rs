//! The driver's lists of pages (virtio 1.2, 5.5.6): what is in them, as runs that are as long as they can be.

use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

use super::config::PAGE_BITS;
use super::service::Broken;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::Chain;
use crate::memory::NotGivenBack;

/// As many bytes as a list has at most. It is several times of what drivers use; with more, one list could keep the device busy for long.
pub const LIST_MAX: usize = 16 << 10;
/// The size of a page's number.
const NUMBER: usize = 4;

/// Pages that follow each other in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the first.
    first: u32,
    /// How many they are, which is 1 at least.
    count: u32,
}

impl Run {
    /// Where it begins.
    pub fn start(self) -> GuestAddress {
        GuestAddress(u64::from(self.first) << PAGE_BITS)
    }

    /// How many bytes it has.
    pub fn bytes(self) -> u64 {
        u64::from(self.count) << PAGE_BITS
    }

    fn is_in(self, memory: &GuestMemory) -> bool {
        // u64 to usize: x86_64 only.
        GuestMemoryBackend::check_range(memory, self.start(), self.bytes() as usize)
    }
}

/// Reads a list of page numbers. The runs are in the order of their addresses, whatever the list's is: Linux takes pages from the end of
/// what is free. A page that is there several times counts once.
///
/// # Errors
/// [`Broken::List`] for a list of no length, of too much, or of half a number; [`Broken::Pages`] when not all of the pages are RAM.
pub fn read(memory: &GuestMemory, chain: &Chain) -> Result<Vec<Run>, Broken> {
    let len = chain.readable_len();
    if len == 0 || len > LIST_MAX || !len.is_multiple_of(NUMBER) {
        return Err(Broken::List(len));
    }
    let mut bytes = vec![0; len];
    chain.read_at(memory, 0, &mut bytes)?;
    let (numbers, _) = bytes.as_chunks();
    let numbers = numbers.iter().copied().map(u32::from_le_bytes);
    let runs = runs(numbers.collect());
    match runs.iter().find(|run| !run.is_in(memory)) {
        None => Ok(runs),
        Some(run) => Err(Broken::Pages(NotGivenBack::Outside {
            start: run.start().raw_value(),
            len: run.bytes(),
        })),
    }
}

fn runs(mut numbers: Vec<u32>) -> Vec<Run> {
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<Run> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if number - run.first == run.count => run.count += 1,
            _ => runs.push(Run {
                first: number,
                count: 1,
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_one_run() {
        let run = |first, count| Run { first, count };
        for (numbers, wanted) in [
            (vec![], vec![]),
            (vec![7], vec![run(7, 1)]),
            (vec![9, 8, 7], vec![run(7, 3)]),
            (
                vec![1, 3, 2, 7, 5, 3],
                vec![run(1, 3), run(5, 1), run(7, 1)],
            ),
            (
                vec![u32::MAX, 0, u32::MAX - 1],
                vec![run(0, 1), run(u32::MAX - 1, 2)],
            ),
            (vec![4; 100], vec![run(4, 1)]),
        ] {
            assert_eq!(runs(numbers), wanted);
        }
    }

    #[test]
    fn a_run_is_where_its_numbers_say() {
        let run = Run {
            first: u32::MAX,
            count: 1,
        };
        assert_eq!(run.start(), GuestAddress(0xfff_ffff_f000));
        assert_eq!(run.bytes(), 4096);
    }
}
