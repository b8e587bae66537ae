//! How often one place in the program may log: a few times at once, and then once in a while. What is left out is counted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// As many lines as a place may say at once.
const BURST: u32 = 20;
/// How long it takes until it may say another one.
const PERIOD: Duration = Duration::from_secs(10);

/// Where a line comes from. There are no more of them than the program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The source file.
    pub file: &'static str,
    /// The line in it.
    pub line: u32,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is said.
    Say,
    /// It is said, and the next one is likely not to be.
    SayLast,
    /// It is said, and so many were not, just before.
    SayAfter(u64),
    /// It is not said.
    LeaveOut,
}

/// What each place has left.
#[derive(Debug, Default)]
pub struct Limit(HashMap<Place, Budget>);

#[derive(Debug)]
struct Budget {
    lines: u32,
    /// Since when it has so many.
    since: Instant,
    left_out: u64,
}

impl Limit {
    /// Whether `place` may say a line at the time `now`.
    pub fn ask(&mut self, place: Place, now: Instant) -> Verdict {
        let budget = self.0.entry(place).or_insert(Budget {
            lines: BURST,
            since: now,
            left_out: 0,
        });
        budget.earn(now);
        let Some(rest) = budget.lines.checked_sub(1) else {
            budget.left_out = budget.left_out.saturating_add(1);
            return Verdict::LeaveOut;
        };
        budget.lines = rest;
        match (std::mem::take(&mut budget.left_out), rest) {
            (0, 0) => Verdict::SayLast,
            (0, _) => Verdict::Say,
            (count, _) => Verdict::SayAfter(count),
        }
    }
}

impl Budget {
    fn earn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let earned = passed.as_secs() / PERIOD.as_secs();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        let lines = self.lines.saturating_add(earned);
        if lines >= BURST {
            (self.lines, self.since) = (BURST, now);
        } else {
            self.lines = lines;
            // Less than BURST periods, or there would be as many lines.
            self.since += PERIOD * earned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Place = Place {
        file: "a.rs",
        line: 1,
    };

    #[test]
    fn a_place_that_floods_is_heard_once_in_a_while() {
        let mut limit = Limit::default();
        let start = Instant::now();
        let mut said = Vec::new();
        // A hundred lines a second, for a minute.
        for tick in 0..6000 {
            let verdict = limit.ask(ONE, start + Duration::from_millis(10 * tick));
            if verdict != Verdict::LeaveOut {
                said.push(verdict);
            }
        }
        let mut expected = vec![Verdict::Say; 19];
        expected.push(Verdict::SayLast);
        expected.push(Verdict::SayAfter(980));
        expected.extend([Verdict::SayAfter(999); 4]);
        assert_eq!(said, expected);
    }

    #[test]
    fn another_place_is_heard_meanwhile_and_a_quiet_one_recovers() {
        let mut limit = Limit::default();
        let start = Instant::now();
        for _ in 0..100 {
            limit.ask(ONE, start);
        }
        assert_eq!(limit.ask(ONE, start), Verdict::LeaveOut);
        let other = Place { line: 2, ..ONE };
        assert_eq!(limit.ask(other, start), Verdict::Say);
        let later = start + Duration::from_secs(3600);
        assert_eq!(limit.ask(ONE, later), Verdict::SayAfter(81));
        for _ in 0..18 {
            assert_eq!(limit.ask(ONE, later), Verdict::Say);
        }
        assert_eq!(limit.ask(ONE, later), Verdict::SayLast);
        assert_eq!(limit.ask(ONE, later), Verdict::LeaveOut);
    }
}
