//! How long further requests are looked for before the driver is told of those that are done.
//!
//! Where several are under way, to tell of each by itself costs the guest an interrupt and a kick for each; where there is one, whoever waits for it waits longer.
//! Which of them it is, and how soon the next one comes, the last times tell.
//!
//! All times are by a clock that the caller reads.

use std::time::{Duration, Instant};

/// As long as a request is kept from the driver at most that is done.
const MOST: Duration = Duration::from_millis(2);
/// An interrupt and a kick are worth so many times the work that was done.
const WORTH: u32 = 8;
/// The next request mostly comes within so many times the usual gap.
const GAPS: u32 = 4;
/// How many times in a row nobody looks for more requests than are expected, before that is tried.
const REST: u8 = 15;
/// A try is so many times as long as the work that was done.
const TRY: u32 = 4;

/// What the last times were like, and this one. A time ends when the driver is told.
#[derive(Debug)]
pub struct Patience {
    /// How many requests are done in one time.
    expected: u32,
    /// How long the next one has usually been looked for.
    gap: Duration,
    /// How many times ago more than were expected were looked for.
    rested: u8,
    /// Whether they are this time.
    tries: bool,
    /// When the last work was begun.
    begun: Instant,
    /// Since when something that is done is kept from the driver.
    kept_since: Option<Instant>,
    /// The look that is under way.
    look: Option<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    begun: Instant,
    end: Instant,
}

impl Patience {
    /// Nothing was done so far.
    pub fn new(now: Instant) -> Self {
        Patience {
            expected: 0,
            gap: Duration::ZERO,
            rested: 0,
            tries: false,
            begun: now,
            kept_since: None,
            look: None,
        }
    }

    /// Work begins, without a request that was looked for.
    pub fn begin(&mut self, now: Instant) {
        self.begun = now;
        self.look = None;
    }

    /// Requests have come, which ends a look.
    pub fn came(&mut self, now: Instant) {
        if let Some(look) = self.look.take() {
            self.gap = (self.gap * 3 + (now - look.begun)) / 4;
        }
        self.begun = now;
    }

    /// Whether to look for further requests, or to look on, before the driver is told of `done` of them.
    pub fn looks(&mut self, done: u32, now: Instant) -> bool {
        let look = match self.look {
            Some(look) => look,
            None => {
                let Some(length) = self.length(done, now - self.begun) else {
                    return false;
                };
                let last = *self.kept_since.get_or_insert(now) + MOST;
                let end = (now + length).min(last);
                *self.look.insert(Look { begun: now, end })
            }
        };
        now < look.end
    }

    /// How long to look when `done` requests are, the last of which took so long.
    fn length(&self, done: u32, work: Duration) -> Option<Duration> {
        let worth = work * WORTH;
        let usual = self.gap * GAPS;
        if self.tries {
            Some(usual.max(work * TRY).min(worth))
        } else if done < self.expected && self.gap < worth {
            Some(usual.max(work).min(worth))
        } else {
            None
        }
    }

    /// The driver is told of so many.
    pub fn told(&mut self, done: u32) {
        self.kept_since = None;
        if self.look.take().is_some() {
            // In vain. The gaps may be those of other times.
            self.gap -= self.gap / 4;
        }
        self.tries = self.rested == REST;
        self.rested = if self.tries { 0 } else { self.rested + 1 };
        // Slower to believe in fewer: a time is cut short by whatever else the guest does.
        self.expected = done.max((self.expected.saturating_mul(3).saturating_add(done)) / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Duration = Duration::from_micros(10);

    /// A guest that has `depth` requests under way, each of which comes `gap` behind the one before, but the first of a time, which waits to be told.
    /// Returns how many times it was told, and how long was looked in vain.
    fn told(patience: &mut Patience, requests: u32, depth: u32, gap: Duration) -> (u32, Duration) {
        let mut now = patience.begun;
        let (mut told, mut vain) = (0, Duration::ZERO);
        let mut left = requests;
        while left > 0 {
            patience.begin(now);
            let mut done = 0;
            loop {
                patience.came(now);
                now += WORK;
                done += 1;
                left -= 1;
                let begun = now;
                let comes = (done < depth && left > 0).then(|| begun + gap);
                while patience.looks(done, now) && comes.is_none_or(|at| now < at) {
                    now += Duration::from_micros(1);
                }
                if comes.is_none_or(|at| now < at) {
                    vain += now - begun;
                    break;
                }
            }
            patience.told(done);
            told += 1;
        }
        (told, vain)
    }

    #[test]
    fn a_guest_with_one_request_at_a_time_hardly_waits() {
        let mut patience = Patience::new(Instant::now());
        let (count, vain) = told(&mut patience, 1600, 1, WORK * 2);
        assert_eq!(count, 1600);
        assert!(vain <= WORK * (TRY + 1) * 100, "{vain:?}");
    }

    #[test]
    fn one_with_many_is_told_of_them_together() {
        let mut patience = Patience::new(Instant::now());
        let (count, _) = told(&mut patience, 1600, 16, WORK * 3);
        assert!(count < 150, "{count}");
    }

    #[test]
    fn what_has_changed_is_noticed_both_ways() {
        let mut patience = Patience::new(Instant::now());
        told(&mut patience, 1600, 16, WORK * 3);
        let (_, vain) = told(&mut patience, 1600, 1, WORK * 3);
        assert!(vain <= MOST * 20 + WORK * (TRY + 1) * 100, "{vain:?}");
        let (count, _) = told(&mut patience, 1600, 16, WORK * 3);
        assert!(count < 150, "{count}");
    }

    #[test]
    fn nobody_waits_for_requests_that_are_far_apart() {
        let mut patience = Patience::new(Instant::now());
        told(&mut patience, 1600, 16, WORK * 3);
        let (count, vain) = told(&mut patience, 1600, 16, WORK * WORTH * 2);
        assert!(count > 1500, "{count}");
        assert!(vain < WORK * WORTH * 150, "{vain:?}");
    }

    #[test]
    fn what_is_done_is_not_kept_for_long_however_many_come() {
        let begun = Instant::now();
        let mut patience = Patience::new(begun);
        patience.told(u32::MAX);
        let mut now = begun;
        for done in 1.. {
            patience.came(now);
            now += WORK;
            if !patience.looks(done, now) {
                break;
            }
            now += WORK / 2;
        }
        assert!(now - begun < MOST + WORK * 3, "{:?}", now - begun);
        assert!(now - begun > MOST / 2, "{:?}", now - begun);
    }
}
