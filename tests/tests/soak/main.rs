//! A VM to which everything happens that a VM's user can do, in a random order, while it works: it is paused, reset, given devices and
//! relieved of them, given and denied memory. Nothing that it reads or sends is lost, nothing makes its kernel complain, and its VMM holds
//! in the end what it held before.
//!
//! The order is that of a seed, which is printed. `cargo testbed soak` has it take longer, and takes a seed.

#[path = "../common/mod.rs"]
mod common;
#[path = "../guest/mod.rs"]
mod guest;

mod deeds;
mod load;

use std::env;
use std::time::{Duration, Instant, SystemTime};

use common::stage;
use deeds::Deeds;
use guest::held::Held;
use orlop_testbed::stories;

/// What the VMM may hold more in the end than after a third, in KiB: the allocator lays things out as they come.
const SLACK_KIB: u64 = 768;

/// Between them the VMM is looked at.
const PARTS: u32 = 3;

/// What a kernel says when something is wrong.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Call Trace",
    "Oops",
    "general protection",
    "rcu: INFO",
    "lockup",
    "blocked for more than",
    "I/O error",
    "timed out",
    "Out of memory",
    "peer: no thread",
];

/// Numbers in an order that a seed decides (splitmix64).
pub struct Random(u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn setting(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|error| panic!("{variable}={value}: {error}")),
    )
}

#[test]
fn nothing_is_lost_and_nothing_grows_whatever_happens_to_a_vm() {
    let Some(stage) = stage() else { return };
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = setting(stories::SOAK_SEED_VARIABLE).unwrap_or(clock.unwrap().as_secs());
    let minutes = setting(stories::SOAK_MINUTES_VARIABLE).unwrap_or(1);
    println!("seed {seed}, {minutes} minutes after the first round");
    let mut deeds = Deeds::begin(Random(seed));
    // What is needed for the first time is no growth.
    deeds.everything_once();
    let mut held = vec![deeds.at_rest()];
    for _ in 0..PARTS {
        let end = Instant::now() + Duration::from_secs(60 * minutes) / PARTS;
        while Instant::now() < end {
            deeds.next();
        }
        held.push(deeds.at_rest());
    }
    println!("{}", deeds.summary());
    let (said, log) = deeds.end();
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}\n{said}");
    assert!(
        !log.contains("must reset") && !log.contains("ERROR"),
        "{log}"
    );
    no_growth(&held);
    stage.leaves_nothing();
}

/// What was held at rest each time: as many threads and descriptors always, and no more memory than when everything had happened often.
fn no_growth(held: &[Held]) {
    let [first, settled, .., last] = held else {
        panic!("{held:?}")
    };
    for now in held {
        assert_eq!(now.threads, first.threads, "{held:#?}");
        assert_eq!(now.descriptors, first.descriptors, "{held:#?}");
    }
    assert!(last.kib <= settled.kib + SLACK_KIB, "{held:#?}");
}
