//! The numbers by which KVM knows pieces of memory.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The numbers that are free: all behind those of RAM at first.
#[derive(Debug)]
pub struct Slots(Mutex<Free>);

#[derive(Debug)]
struct Free {
    given_back: BTreeSet<u32>,
    next: u32,
}

impl Slots {
    /// All from `first` on.
    pub fn from(first: u32) -> Self {
        Slots(Mutex::new(Free {
            given_back: BTreeSet::new(),
            next: first,
        }))
    }

    /// A number that nothing else has. KVM refuses those that are beyond what it knows.
    pub fn take(&self) -> u32 {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = free.given_back.pop_first() {
            return slot;
        }
        let slot = free.next;
        free.next = slot.saturating_add(1);
        slot
    }

    /// Nothing has this number any more.
    pub fn give_back(&self, slot: u32) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.given_back.insert(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_given_back_is_taken_again() {
        let slots = Slots::from(2);
        assert_eq!([slots.take(), slots.take(), slots.take()], [2, 3, 4]);
        slots.give_back(3);
        assert_eq!([slots.take(), slots.take()], [3, 5]);
    }
}
