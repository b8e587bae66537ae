//! `cargo testbed bench`: builds `orlop-bench` of `benches/` and runs it where KVM is.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::host::{self, Machine};
use crate::progress::step;
use crate::setup::{self, build};

/// How long one measured run may take where everything is emulated.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// The same for one in which devices do all that they can.
const DEVICES_LIMIT: Duration = Duration::from_secs(900);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// What many VMs on one host cost, side by side with QEMU's microvm machine
    Density,
    /// A guest's devices, side by side with QEMU's machines
    Devices,
    /// How soon a command of a container image says something, side by side with runc and a VM of QEMU's
    Image,
    /// Where the time from `ctr run` to the first output goes
    Pod,
    /// What pods take and hold, side by side with runc and crun
    Pods,
    /// What a request to a guest's disk or card costs, side by side with QEMU's machines
    Requests,
    /// A VM's start and its memory, side by side with QEMU's microvm machine
    Start,
}

impl Subject {
    fn word(self) -> &'static str {
        match self {
            Subject::Density => "density",
            Subject::Devices => "devices",
            Subject::Image => "image",
            Subject::Pod => "pod",
            Subject::Pods => "pods",
            Subject::Requests => "requests",
            Subject::Start => "start",
        }
    }

    /// The virtual host that it is measured in, where there is no hardware virtualisation.
    fn machine(self) -> Machine {
        match self {
            // What devices do, several threads do at once. Several guests on the one processor of a host that counts instructions did not boot, and one
            // that writes 4 KiB at a time stood still.
            Subject::Density
            | Subject::Devices
            | Subject::Pod
            | Subject::Pods
            | Subject::Requests => Machine::default(),
            // The start of a VM is one thread's work after another's: so it can be counted rather than timed.
            Subject::Image | Subject::Start => Machine {
                counts_instructions: true,
                ..Machine::default()
            },
        }
    }
}

/// Sets this machine up and measures `runs` times where KVM is; of devices and requests those that are named in `only`, or all if it is empty. How Orlop compares
/// is drawn in the file `plot`.
///
/// # Errors
/// When something cannot be installed, built or started.
pub fn run(subject: Subject, runs: u32, only: &[String], plot: Option<&Path>) -> Result<ExitCode> {
    let has_parts = matches!(subject, Subject::Devices | Subject::Requests);
    if !has_parts && !only.is_empty() {
        bail!("--only is for `bench devices` and `bench requests`");
    }
    let has_no_plot = [
        Subject::Image,
        Subject::Pod,
        Subject::Pods,
        Subject::Requests,
    ];
    if plot.is_some() && has_no_plot.contains(&subject) {
        bail!("--plot is for `bench start`, `density` and `devices`");
    }
    set_up(subject)?;
    let program = build::benchmarks()?;
    let mut command: Vec<OsString> = vec![program.into(), subject.word().into()];
    command.extend(["--runs".into(), runs.to_string().into()]);
    if !only.is_empty() {
        command.extend(["--only".into(), only.join(",").into()]);
    }
    if let Some(plot) = plot {
        command.extend(["--plot".into(), std::path::absolute(plot)?.into()]);
    }
    let limit = match subject {
        // A crowd boots one guest after another there.
        Subject::Density | Subject::Devices | Subject::Pods | Subject::Requests => {
            DEVICES_LIMIT * runs
        }
        Subject::Image | Subject::Pod | Subject::Start => {
            (RUN_LIMIT * runs).max(Duration::from_secs(600))
        }
    };
    measure(&subject.machine(), &command, limit)
}

/// Measures `runs` times what there are budgets for, and sees whether they are kept. That is always in a virtual host whose clock counts instructions: the
/// budgets are of those.
///
/// # Errors
/// As [`run`].
pub fn check(subject: Subject, runs: u32) -> Result<ExitCode> {
    if subject != Subject::Start {
        bail!("there are budgets for `bench start` only");
    }
    set_up(subject)?;
    let program = build::benchmarks()?;
    let machine = Machine {
        force_virtual: true,
        ..subject.machine()
    };
    let mut command: Vec<OsString> = vec![program.into(), subject.word().into()];
    command.extend(["--check".into(), "--runs".into(), runs.to_string().into()]);
    measure(
        &machine,
        &command,
        (RUN_LIMIT * runs).max(Duration::from_secs(600)),
    )
}

fn set_up(subject: Subject) -> Result<()> {
    setup::everything()?;
    if subject != Subject::Pod {
        setup::own_kernel::build()?;
    }
    if matches!(subject, Subject::Devices | Subject::Requests) {
        setup::debian::install(setup::debian::TRAFFIC)?;
        setup::debian::install(setup::debian::LOADS)?;
    }
    if subject == Subject::Pods {
        setup::debian::install(&[setup::debian::CRUN])?;
    }
    Ok(())
}

fn measure(machine: &Machine, command: &[OsString], limit: Duration) -> Result<ExitCode> {
    let outcome = host::run(machine, command, Some(limit))?;
    if let Some(message) = outcome.message() {
        step(message);
    }
    Ok(ExitCode::from(outcome.exit_status()))
}
