//! Namespaces of a cluster's own: mounts, network, processes, names, IPC.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::host::outcome::shell_status;

/// A command that runs this program with `arguments` as the first process of new namespaces. It ends with whoever started it, and what it
/// starts ends with it. Only root may make them.
///
/// # Errors
/// When this program has no path.
pub fn command(arguments: &[impl AsRef<OsStr>]) -> Result<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--pid", "--uts", "--ipc"])
        .args(["--propagation", "private", "--mount-proc"])
        .args(["--fork", "--kill-child"])
        .arg(crate::own::program()?)
        .args(arguments);
    // The first process of a namespace, and unshare that waits for it, leave all signals be but one.
    // SAFETY: the call is async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    Ok(command)
}

/// Runs it, and returns its status.
///
/// # Errors
/// When the namespaces cannot be made.
pub fn enter(arguments: &[impl AsRef<OsStr>]) -> Result<ExitCode> {
    let status = command(arguments)?
        .status()
        .context("cannot run unshare, of util-linux")?;
    Ok(ExitCode::from(shell_status(status)))
}
