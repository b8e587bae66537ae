//! How a VM ends.

use std::fmt;

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself. It boots again, unless the user wants the VM to end then.
    Reset,
    /// The guest took a fault that it could not handle.
    TripleFault,
    /// The guest's kernel panicked, and said so by pvpanic.
    Panicked,
    /// A client or a signal ended it.
    Killed,
    /// The VMM could not go on, and why.
    Failed(String),
}

impl Outcome {
    /// The VMM cannot go on because of `reason`.
    pub fn failed(reason: impl Into<String>) -> Self {
        Outcome::Failed(reason.into())
    }

    /// The exit status of a VMM whose VM ended so. 2 is a usage error's.
    pub fn exit_status(&self) -> u8 {
        match self {
            Outcome::PoweredOff => 0,
            Outcome::Failed(_) => 1,
            Outcome::Reset => 3,
            Outcome::TripleFault => 4,
            Outcome::Panicked => 5,
            Outcome::Killed => 137,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PoweredOff => f.write_str("the guest powered off"),
            Outcome::Reset => f.write_str("the guest reset itself"),
            Outcome::TripleFault => f.write_str("the guest crashed (triple fault)"),
            Outcome::Panicked => f.write_str("the guest's kernel panicked"),
            Outcome::Killed => f.write_str("the VM was killed"),
            Outcome::Failed(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_status_of_its_own() {
        let outcomes = [
            Outcome::PoweredOff,
            Outcome::Reset,
            Outcome::TripleFault,
            Outcome::Panicked,
            Outcome::Killed,
            Outcome::failed("x"),
        ];
        let mut statuses = outcomes.map(|outcome| outcome.exit_status());
        statuses.sort_unstable();
        assert_eq!(statuses, [0, 1, 3, 4, 5, 137]);
    }
}
