//! How tests ended: read from what test programs print, for all of them ([`Count`]) or one by one ([`Told`]).

use std::collections::BTreeSet;

/// What a line begins with that tells of a story that was skipped.
pub const SKIPPED: &str = "skipped: ";

/// How many tests ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Those that did what they should.
    pub passed: u32,
    /// Those that did not.
    pub failed: u32,
    /// Those that were not run.
    pub skipped: u32,
}

impl Count {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Takes a line of a test program's output into account.
    pub fn take(&mut self, line: &str) {
        if said(line).starts_with(SKIPPED) {
            // Its test counts as passed in the program's own summary.
            self.skipped += 1;
            self.passed = self.passed.wrapping_sub(1);
        } else if let Some(summary) = line.strip_prefix("test result: ") {
            let number = |what: &str| {
                summary
                    .split([';', '.'])
                    .filter_map(|part| part.trim().strip_suffix(what))
                    .find_map(|number| number.trim().parse::<u32>().ok())
                    .unwrap_or(0)
            };
            self.passed = self.passed.wrapping_add(number(" passed"));
            self.failed += number(" failed");
            self.skipped += number(" ignored");
        }
    }
}

/// The stories of one program: those that are over need not be told again when others are.
#[derive(Debug, Default)]
pub struct Told {
    /// Those that passed or were skipped, by name.
    over: BTreeSet<String>,
    skipped: u32,
    /// The one that is being told, and whether it said that it is skipped.
    now: Option<(String, bool)>,
}

impl Told {
    /// Takes a line of the program's output into account.
    pub fn take(&mut self, line: &str) {
        if let Some((name, _)) = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "))
        {
            self.now = Some((name.to_owned(), false));
        }
        let said = said(line);
        if said.starts_with(SKIPPED) {
            if let Some((_, skipped)) = &mut self.now {
                *skipped = true;
            }
        } else if said == "ok" || said.starts_with("ignored") {
            if let Some((name, skipped)) = self.now.take() {
                self.skipped += u32::from(skipped || said != "ok");
                self.over.insert(name);
            }
        } else if said == "FAILED" {
            self.now = None;
        }
    }

    /// The names of the stories that are over.
    pub fn over(&self) -> impl Iterator<Item = &str> {
        self.over.iter().map(String::as_str)
    }

    /// How they ended; `failed` are those that failed in the end.
    #[must_use]
    pub fn count(&self, failed: u32) -> Count {
        let over = u32::try_from(self.over.len()).unwrap_or(u32::MAX);
        Count {
            passed: over.saturating_sub(self.skipped),
            failed,
            skipped: self.skipped,
        }
    }
}

/// What a test says itself: "test name ... " has no line end before it.
fn said(line: &str) -> &str {
    line.rsplit(" ... ").next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up_and_a_skipped_story_has_not_passed() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test a ... skipped: no VFIO here",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        ] {
            count.take(line);
        }
        let expected = Count {
            passed: 3,
            failed: 2,
            skipped: 2,
        };
        assert_eq!(count, expected);
    }

    #[test]
    fn what_failed_is_not_over_and_neither_is_what_a_machine_took_along() {
        let mut told = Told::default();
        for line in [
            "test plain ... ok",
            "test a::talks ... it says something",
            "ok",
            "test elsewhere ... skipped: no VFIO here",
            "ok",
            "test off ... ignored, for a reason",
            "test bad ... FAILED",
            "test talks_and_fails ... it says something",
            "FAILED",
            "test cut_short ... ",
        ] {
            told.take(line);
        }
        let over: Vec<_> = told.over().collect();
        assert_eq!(over, ["a::talks", "elsewhere", "off", "plain"]);
        let expected = Count {
            passed: 2,
            failed: 2,
            skipped: 2,
        };
        assert_eq!(told.count(2), expected);
        // Told again.
        told.take("test bad ... ok");
        assert_eq!(told.count(0).passed, 3);
    }
}
