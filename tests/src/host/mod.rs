//! A machine with a real `/dev/kvm` to run commands on.
//!
//! Where this machine has hardware virtualisation a command runs directly. Elsewhere it runs in the *virtual host*: QEMU emulates
//! a processor with AMD SVM and an IOMMU ([`qemu`]), a Debian kernel with a small initrd ([`initrd`]) moves this machine's root
//! file system, shared by 9p, to `/`, and the testbed's own binary continues there as the first process ([`inside`]). It speaks
//! with the outside over virtio-serial ports ([`channel`]): standard input, output and error byte for byte, and reports on which
//! the outside tells a failing command from a failing host ([`outcome`]).

pub mod channel;
pub mod devices;
pub mod emulator;
pub mod initrd;
pub mod inside;
pub mod kernel;
pub mod kvm;
pub mod modules;
pub mod outcome;
pub mod qemu;
mod session;

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use crate::setup;
pub use outcome::{EXIT_HOST_FAILED, EXIT_TIME_LIMIT, Outcome};

/// The variable that is set, to `1`, in the environment of commands in a virtual host.
pub const INSIDE_VARIABLE: &str = "ORLOP_VIRTUAL_HOST";

/// Whether this process is in a virtual host.
#[must_use]
pub fn is_virtual() -> bool {
    std::env::var_os(INSIDE_VARIABLE).is_some()
}

/// The machine that a command asks for.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Take the virtual host even where this machine would do.
    pub force_virtual: bool,
    /// The virtual host's memory in MiB.
    pub memory_mib: u32,
    /// The virtual host's processors. Another one is there for the kernel alone.
    pub cpus: u32,
    /// Its clock counts instructions, a nanosecond each, rather than time. It has one processor then. What it does takes as long as before,
    /// and seems to take what it would on a quiet machine.
    pub counts_instructions: bool,
    /// It has PCI devices behind its IOMMU that can be given to guests ([`devices`]).
    pub passthrough: bool,
    /// The virtual host's kernel.
    pub kernel: HostKernel,
    /// Further arguments for its QEMU.
    pub qemu: Vec<OsString>,
}

/// A kernel for the virtual host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum HostKernel {
    /// Debian 12's first.
    #[default]
    #[value(name = Self::Stable.name())]
    Stable,
    /// Debian 12's newer one.
    #[value(name = Self::Newer.name())]
    Newer,
    /// One of our own, for what no kernel of Debian's has: iommufd. It is built first.
    #[value(name = Self::Iommufd.name())]
    Iommufd,
}

impl HostKernel {
    /// What command lines call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stable => "6.1",
            Self::Newer => "6.12",
            Self::Iommufd => "iommufd",
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            force_virtual: false,
            memory_mib: 4096,
            cpus: 2,
            counts_instructions: false,
            passthrough: false,
            kernel: HostKernel::default(),
            qemu: Vec::new(),
        }
    }
}

/// Runs `command` where KVM is, with this process's working directory, environment and standard streams, for `limit` at most.
///
/// # Errors
/// When the machine cannot be had: no QEMU, no kernel, no network to fetch them. What happens to the command itself, and to a
/// virtual host that was started, is an [`Outcome`].
pub fn run(machine: &Machine, command: &[OsString], limit: Option<Duration>) -> Result<Outcome> {
    // No machine's own devices are given away by tests.
    if kvm::is_hardware() && !machine.force_virtual && !machine.passthrough {
        run_directly(command, limit)
    } else {
        let (emulator, kernel) = setup::virtual_host(machine.kernel)?;
        session::run(machine, &emulator, &kernel, command, limit)
    }
}

fn run_directly(command: &[OsString], limit: Option<Duration>) -> Result<Outcome> {
    let Some((program, arguments)) = command.split_first() else {
        anyhow::bail!("no command to run");
    };
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("testbed: cannot run {}: {error}", program.display());
            return Ok(Outcome::Ended(outcome::EXIT_NOT_RUN));
        }
    };
    let Some(limit) = limit else {
        return Ok(Outcome::Ended(outcome::shell_status(child.wait()?)));
    };
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Outcome::Ended(outcome::shell_status(status)));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(Outcome::TimeLimit(limit));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
