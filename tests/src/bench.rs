//! `cargo testbed bench`: builds `orlop-bench` of `benches/` and runs it where KVM is.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::host::{self, Machine};
use crate::progress::step;
use crate::setup::{self, build};

/// How long one measured run may take.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// Where the time from `ctr run` to the first output goes
    Pod,
    /// A VM's start and its memory, side by side with QEMU's microvm machine
    Start,
}

impl Subject {
    fn word(self) -> &'static str {
        match self {
            Subject::Pod => "pod",
            Subject::Start => "start",
        }
    }

    /// The virtual host that it is measured in, where there is no hardware virtualisation.
    fn machine(self) -> Machine {
        match self {
            Subject::Pod => Machine::default(),
            // The start of a VM is one thread's work after another's: so it can be counted rather than timed.
            Subject::Start => Machine {
                counts_instructions: true,
                ..Machine::default()
            },
        }
    }
}

/// Sets this machine up and measures `runs` times where KVM is.
///
/// # Errors
/// When something cannot be installed, built or started.
pub fn run(subject: Subject, runs: u32) -> Result<ExitCode> {
    setup::everything()?;
    if subject == Subject::Start {
        setup::own_kernel::build()?;
        setup::virtual_host()?;
    }
    let program = build::benchmarks()?;
    let words: [OsString; 3] = [
        subject.word().into(),
        "--runs".into(),
        runs.to_string().into(),
    ];
    let command: Vec<_> = std::iter::once(program.into()).chain(words).collect();
    let limit = (RUN_LIMIT * runs).max(Duration::from_secs(600));
    let outcome = host::run(&subject.machine(), &command, Some(limit))?;
    if let Some(message) = outcome.message() {
        step(message);
    }
    Ok(ExitCode::from(outcome.exit_status()))
}
