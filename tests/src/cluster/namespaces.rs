//! Namespaces of a cluster's own: mounts, network, processes, names, IPC.

use std::ffi::OsStr;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::host::outcome::shell_status;

/// A command that runs this program with `arguments` as the first process of new namespaces. What it starts ends with it. Only root may
/// make them.
///
/// # Errors
/// When this program has no path.
pub fn command(arguments: &[impl AsRef<OsStr>]) -> Result<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--pid", "--uts", "--ipc"])
        .args(["--propagation", "private", "--mount-proc"])
        // Interrupted, unshare dies, and with it the first process and so all of them.
        .args(["--fork", "--kill-child=SIGTERM"])
        .arg(std::env::current_exe()?)
        .args(arguments);
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
