//! `orlop run -d`: the VMM goes on in the background once its guest boots.
//!
//! The process that was called forks before there is any thread. The child becomes the VMM, in a session of its own, and speaks on the
//! caller's stderr until the guest boots: what can go wrong at first is said where it was asked for. Then it lets go of the caller's
//! streams, and the parent prints the VM's name and ends. What the VMM has to say from then on goes to a file in the state directory,
//! which is removed when the VM has ended well.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use orlop_vmm::config::VmName;
use orlop_vmm::state::StateDirectory;

use crate::output;

/// Which of the two processes goes on here.
pub enum Side {
    /// The one that was called: it has waited for the VM to run or to fail, and this is its exit status.
    Caller(ExitCode),
    /// The VMM.
    Vmm(Background),
}

/// A VMM on its way into the background.
pub struct Background {
    caller: PipeWriter,
}

/// Where the VMM's messages go when nobody is there to read them.
pub struct Log(PathBuf);

/// Forks. To be called while there is one thread.
///
/// # Errors
/// When the system gives no process or pipe.
pub fn fork() -> anyhow::Result<Side> {
    let (vmm, caller) = io::pipe().context("cannot make a pipe")?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot start a process for the VM"),
        0 => {
            drop(vmm);
            // SAFETY: no preconditions. It fails for a process that leads a group, which a child that was just forked does not.
            unsafe { libc::setsid() };
            Ok(Side::Vmm(Background { caller }))
        }
        child => {
            drop(caller);
            Ok(Side::Caller(wait(vmm, child)?))
        }
    }
}

/// Waits until the VM runs, or the child has ended without that.
fn wait(mut vmm: PipeReader, child: libc::pid_t) -> anyhow::Result<ExitCode> {
    let mut name = String::new();
    vmm.read_to_string(&mut name)
        .context("cannot hear from the VM's process")?;
    if !name.is_empty() {
        output::print(&format!("{name}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call; the child is ours, and nobody else waits for it.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error()).context("cannot wait for the VM's process");
    }
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    // It has said why.
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

impl Background {
    /// Where a VM's messages will go.
    pub fn log(name: &VmName) -> Log {
        Log(StateDirectory::of_user().log(name))
    }

    /// The guest boots: lets go of the caller.
    ///
    /// # Errors
    /// When the log cannot be made.
    pub fn go(mut self, name: &VmName) -> io::Result<()> {
        let null = File::open("/dev/null")?;
        let log = StateDirectory::of_user().create_log(name)?;
        for (stream, place) in [(&null, 0), (&log, 1), (&log, 2)] {
            // SAFETY: both are open descriptors.
            if unsafe { libc::dup2(stream.as_raw_fd(), place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // A caller that was killed meanwhile needs no word.
        let _ = self.caller.write_all(name.as_str().as_bytes());
        Ok(())
    }
}

impl Log {
    /// Removes it, unless it is that of another VM of this name by now: the VM has ended as it was meant to.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self) -> io::Result<()> {
        let ours = File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()?;
        let there = fs::metadata(&self.0)?;
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
            fs::remove_file(&self.0)?;
        }
        Ok(())
    }
}
