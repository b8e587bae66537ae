//! What the guest tells of itself.

use std::time::Duration;

use super::*;

/// Where the statistics lie.
const AT: u64 = LIST;

/// Makes statistics available: tags with values.
fn tell(machine: &mut Machine, entries: &[(u16, u64)]) -> u16 {
    let mut bytes = Vec::new();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    machine.write(AT, &bytes);
    machine.offer(STATISTICS, &[(AT, bytes.len() as u32, false)])
}

/// Looks until the driver has its chain back.
fn comes_back(machine: &mut Machine, head: u16) {
    let end = Instant::now() + PATIENCE;
    loop {
        machine.counter("free_bytes");
        match machine.drivers[STATISTICS].take_used() {
            Some(used) => return assert_eq!(used, (head, 0)),
            None => assert!(Instant::now() < end, "it is not asked"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn statistics_are_asked_for_when_somebody_looks() {
    let mut machine = Machine::new(BOTH[0]);
    let first = tell(&mut machine, &[(4, 1000), (5, 2000)]);
    machine.until("free_bytes", 1000);
    assert_eq!(machine.counter("total_bytes"), Some(2000));
    assert_eq!(machine.counter("swap_in_bytes"), None, "nobody said so");
    comes_back(&mut machine, first);

    let second = tell(&mut machine, &[(4, 900)]);
    machine.until("free_bytes", 900);
    comes_back(&mut machine, second);
}

#[test]
fn a_guest_that_nobody_looks_at_is_not_asked() {
    let mut machine = Machine::new(BOTH[0]);
    tell(&mut machine, &[(4, 1000)]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(machine.drivers[STATISTICS].used_index(), 0);
    // Asked while it has nothing to give back.
    let mut machine = Machine::new(BOTH[0]);
    machine.counter("free_bytes");
    std::thread::sleep(Duration::from_millis(50));
    tell(&mut machine, &[(4, 1000)]);
    machine.until("free_bytes", 1000);
}

#[test]
fn another_guest_has_other_statistics() {
    let mut machine = Machine::new(BOTH[0]);
    tell(&mut machine, &[(4, 1000)]);
    machine.until("free_bytes", 1000);
    machine.balloon.stop();
    assert_eq!(machine.counter("free_bytes"), None);
    machine.start();
    assert_eq!(machine.counter("free_bytes"), None);
    tell(&mut machine, &[(4, 5)]);
    machine.until("free_bytes", 5);
}

#[test]
fn all_but_the_last_come_back() {
    let mut machine = Machine::new(BOTH[0]);
    let heads: Vec<_> = (0..50)
        .map(|free| tell(&mut machine, &[(4, free)]))
        .collect();
    for head in &heads[..49] {
        assert_eq!(machine.drivers[STATISTICS].wait_used(), (*head, 0));
    }
    machine.until("free_bytes", 49);
    comes_back(&mut machine, heads[49]);
    assert!(!machine.transport.faulted());
}

#[test]
fn odd_statistics_are_no_fault() {
    let mut machine = Machine::new(BOTH[0]);
    machine.write(AT, &vec![0xff; 1 << 20]);
    for len in [1, 9, 11, 1 << 20] {
        machine.offer(STATISTICS, &[(AT, len, false)]);
    }
    machine.offer(STATISTICS, &[(AT, 100, true)]);
    tell(&mut machine, &[(4, 7)]);
    machine.until("free_bytes", 7);
    assert!(!machine.transport.faulted());
    machine.works();
}
