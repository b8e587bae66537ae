//! How a command on a host ended, and what that means as an exit status.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

/// The exit status when the time limit ended the command.
pub const EXIT_TIME_LIMIT: u8 = 124;
/// The exit status when the virtual host itself failed, so nothing is known about the command.
pub const EXIT_HOST_FAILED: u8 = 125;
/// The exit status when the command could not be started.
pub const EXIT_NOT_RUN: u8 = 127;

/// How a command on a host ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended by itself, with this status as a shell reports it (128 + signal when a signal killed it).
    Ended(u8),
    /// The time limit ended it.
    TimeLimit(Duration),
    /// This signal ended the testbed, and the virtual host with it.
    Interrupted(i32),
    /// The virtual host crashed, hung or never came up.
    HostFailed {
        /// What is known of it, for people.
        reason: String,
        /// True when the command may have begun.
        was_up: bool,
        /// The end of the virtual host's console.
        console: String,
    },
}

impl Outcome {
    /// The exit status that stands for this outcome.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Ended(status) => *status,
            Self::TimeLimit(_) => EXIT_TIME_LIMIT,
            Self::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(EXIT_HOST_FAILED),
            Self::HostFailed { .. } => EXIT_HOST_FAILED,
        }
    }

    /// What to tell people beyond the status, if anything.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Ended(_) | Self::Interrupted(_) => None,
            Self::TimeLimit(limit) => Some(format!(
                "the time limit of {} s ended the command",
                limit.as_secs()
            )),
            Self::HostFailed {
                reason, console, ..
            } if console.is_empty() => Some(format!(
                "the virtual host failed: {reason} (its console is empty)"
            )),
            Self::HostFailed {
                reason, console, ..
            } => Some(format!(
                "the virtual host failed: {reason}; the end of its console:\n{console}"
            )),
        }
    }
}

/// A process's end as a shell reports it.
#[must_use]
pub fn shell_status(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => i32::from(EXIT_HOST_FAILED),
    };
    u8::try_from(code & 0xff).unwrap_or(EXIT_HOST_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(shell_status(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(shell_status(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn a_failed_host_shows_the_end_of_its_console() {
        let outcome = Outcome::HostFailed {
            reason: "QEMU ended".into(),
            was_up: true,
            console: "Kernel panic".into(),
        };
        assert_eq!(outcome.exit_status(), EXIT_HOST_FAILED);
        assert!(outcome.message().unwrap().ends_with("Kernel panic"));
        assert_eq!(Outcome::Ended(3).message(), None);
    }
}
