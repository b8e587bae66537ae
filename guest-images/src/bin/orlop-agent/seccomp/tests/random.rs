//! Profiles at random: the program must say what a plain reading of the profile says.

use std::collections::BTreeMap;

use orlop_guest_images::noise::Noise;

use super::machine::{Call, run};
use crate::seccomp::profile::{Calls, Comparison, Condition, Profile, Rule, Verdict};
use crate::seccomp::program::program;

struct Dice(Noise, u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(self.1 * 8, &mut bytes);
        self.1 += 1;
        u64::from_le_bytes(bytes) % sides
    }

    /// Few different ones, so that they are often the same; and some that differ in one half only.
    fn value(&mut self) -> u64 {
        let half = |roll| [0, 1, 2, 0x8000_0000, 0xffff_ffff][roll as usize];
        half(self.roll(5)) << 32 | half(self.roll(5))
    }

    fn condition(&mut self, argument: u8) -> Condition {
        let value = self.value();
        let comparison = match self.roll(7) {
            0 => Comparison::Equal(value),
            1 => Comparison::NotEqual(value),
            2 => Comparison::Less(value),
            3 => Comparison::LessOrEqual(value),
            4 => Comparison::Greater(value),
            5 => Comparison::GreaterOrEqual(value),
            _ => Comparison::MaskedEqual {
                mask: self.value(),
                value,
            },
        };
        Condition {
            argument,
            comparison,
        }
    }

    fn calls(&mut self) -> Calls {
        let mut calls = BTreeMap::new();
        for number in 0..self.roll(120) as u32 {
            if self.roll(3) == 0 {
                continue;
            }
            let rules = (0..=self.roll(3)).map(|_| {
                let conditions = (0..self.roll(4) as u8).map(|n| self.condition(n));
                Rule {
                    conditions: conditions.collect(),
                    verdict: Verdict([1, 2, 3][self.roll(3) as usize]),
                }
            });
            calls.insert(number, rules.collect());
        }
        Calls(calls)
    }
}

fn holds(condition: &Condition, arguments: [u64; 6], width: u64) -> bool {
    let cut = |value| value & width;
    let argument = arguments[usize::from(condition.argument)];
    match condition.comparison {
        Comparison::Equal(value) => argument == cut(value),
        Comparison::NotEqual(value) => argument != cut(value),
        Comparison::Less(value) => argument < cut(value),
        Comparison::LessOrEqual(value) => argument <= cut(value),
        Comparison::Greater(value) => argument > cut(value),
        Comparison::GreaterOrEqual(value) => argument >= cut(value),
        Comparison::MaskedEqual { mask, value } => argument & cut(mask) == cut(value),
    }
}

fn expected(profile: &Profile, calls: &Calls, call: Call, width: u64) -> u32 {
    let newest = calls.0.keys().next_back();
    if newest.is_some_and(|newest| call.number > *newest) {
        return profile.unheard_of.0;
    }
    let rules = calls.0.get(&call.number).into_iter().flatten();
    let applies = |rule: &&Rule| {
        let mut conditions = rule.conditions.iter();
        conditions.all(|condition| holds(condition, call.arguments, width))
    };
    let mut applying = rules.filter(applies);
    applying.next().map_or(profile.default, |it| it.verdict).0
}

#[test]
fn the_program_says_what_the_profile_says() {
    let mut dice = Dice(Noise::new(20261127), 0);
    let mut seen = BTreeMap::new();
    for _ in 0..300 {
        let profile = Profile {
            default: Verdict(4),
            unheard_of: Verdict(5),
            native: dice.calls(),
            i386: Some(dice.calls()),
            x32: false,
            flags: 0,
        };
        let Ok(program) = program(&profile) else {
            continue;
        };
        for _ in 0..300 {
            let arguments = [(); 6].map(|()| dice.value());
            let number = dice.roll(125) as u32;
            let native = Call {
                number,
                architecture: 0xc000_003e,
                arguments,
            };
            let said = run(&program, native);
            assert_eq!(
                said,
                expected(&profile, &profile.native, native, u64::MAX),
                "{native:x?}"
            );
            *seen.entry(said).or_insert(0) += 1;
            let old = Call {
                architecture: 0x4000_0003,
                arguments: arguments.map(|it| it & 0xffff_ffff),
                ..native
            };
            let calls = profile.i386.as_ref().unwrap();
            assert_eq!(
                run(&program, old),
                expected(&profile, calls, old, 0xffff_ffff),
                "{old:x?}"
            );
        }
    }
    // All five verdicts, each of them often.
    assert!(
        seen.len() == 5 && seen.values().all(|times| *times > 1000),
        "{seen:?}"
    );
}
