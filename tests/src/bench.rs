//! `cargo testbed bench`: builds `orlop-bench` of `benches/` and runs it where KVM is.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::containerd::{RELEASE_VARIABLE, Version};
use crate::host::{self, HostKernel, Machine};
use crate::progress::step;
use crate::setup::{self, build};

/// How long one measured run may take where everything is emulated.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// The same for one in which devices do all that they can.
const DEVICES_LIMIT: Duration = Duration::from_secs(900);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// What many VMs on one host cost, side by side with QEMU's machines
    Density,
    /// A guest's devices, side by side with QEMU's machines
    Devices,
    /// How soon a command of a container image says something, side by side with runc and a VM of QEMU's
    Image,
    /// Where the time from `ctr run` to the first output goes
    Pod,
    /// What pods take and hold, side by side with runc, crun, and shims that variables name
    Pods,
    /// What a request to a guest's disk or card costs, side by side with QEMU's machines
    Requests,
    /// A VM's start and its memory, side by side with QEMU's machines
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

/// What is measured, how often and where.
#[derive(Debug, Args)]
pub struct Measurement {
    /// What is measured
    #[arg(value_enum, default_value_t = Subject::Pod)]
    subject: Subject,
    /// How many runs are measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Of `devices` these kinds (blk, net, vsock, fs), of `requests` those with these words in their names; separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Draw how far Orlop is ahead, as an SVG file (start, density, devices)
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    plot: Option<PathBuf>,
    /// Measure Orlop alone where everything is emulated and instructions are counted, and fail where a budget is exceeded (start)
    #[arg(long)]
    check: bool,
    /// The containerd that has the pods; another than Debian's own is built first (pod, pods)
    #[arg(long, value_enum, value_name = "VERSION", default_value_t)]
    containerd: Version,
    /// The virtual host's kernel
    #[arg(long, value_enum, value_name = "KERNEL", default_value_t)]
    host_kernel: HostKernel,
}

impl Measurement {
    /// Sets this machine up and measures where KVM is. What there are budgets for is always measured in a virtual host whose clock counts
    /// instructions: the budgets are of those.
    ///
    /// # Errors
    /// When an option is not for that subject, or something cannot be installed, built or started.
    pub fn run(&self) -> Result<ExitCode> {
        self.check_options()?;
        set_up(self.subject)?;
        let program = build::benchmarks()?;
        let mut command: Vec<OsString> = match self.containerd {
            Version::Debian => Vec::new(),
            // By `env`, for it is the command's alone.
            other => {
                let mut release = OsString::from(RELEASE_VARIABLE);
                release.push("=");
                release.push(other.get()?.programs());
                vec!["env".into(), release]
            }
        };
        command.extend([program.into(), self.subject.word().into()]);
        command.extend(["--runs".into(), self.runs.to_string().into()]);
        if self.check {
            command.push("--check".into());
        }
        if !self.only.is_empty() {
            command.extend(["--only".into(), self.only.join(",").into()]);
        }
        if let Some(plot) = &self.plot {
            command.extend(["--plot".into(), std::path::absolute(plot)?.into()]);
        }
        let machine = Machine {
            force_virtual: self.check,
            kernel: self.host_kernel,
            ..self.subject.machine()
        };
        let outcome = host::run(&machine, &command, Some(self.limit()))?;
        if let Some(message) = outcome.message() {
            step(message);
        }
        Ok(ExitCode::from(outcome.exit_status()))
    }

    fn check_options(&self) -> Result<()> {
        use Subject::*;
        let is_of = |subjects: &[Subject]| subjects.contains(&self.subject);
        if !self.only.is_empty() && !is_of(&[Devices, Requests]) {
            bail!("--only is for `bench devices` and `bench requests`");
        }
        if self.plot.is_some() && !is_of(&[Start, Density, Devices]) {
            bail!("--plot is for `bench start`, `density` and `devices`");
        }
        if self.check && !is_of(&[Start]) {
            bail!("there are budgets for `bench start` only");
        }
        if self.containerd != Version::default() && !is_of(&[Pod, Pods]) {
            bail!("--containerd is for `bench pod` and `bench pods`");
        }
        Ok(())
    }

    /// How long all of it may take where everything is emulated.
    fn limit(&self) -> Duration {
        match self.subject {
            // A crowd boots one guest after another there, and so do those that warm up.
            Subject::Pods => DEVICES_LIMIT * (self.runs + 1),
            Subject::Density | Subject::Devices | Subject::Requests => DEVICES_LIMIT * self.runs,
            Subject::Image | Subject::Pod | Subject::Start => {
                (RUN_LIMIT * self.runs).max(Duration::from_secs(600))
            }
        }
    }
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
