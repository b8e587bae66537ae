//! The process of a node's containerd: started, started again when it ends by itself, as systemd would do it, and ended with its owner.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Network, Node};
use crate::progress::step;
use crate::setup::build;

const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(200);

/// The running daemon of a [`Node`]; it ends with this value.
#[derive(Debug)]
pub struct Daemon {
    process: Arc<Mutex<Option<Child>>>,
    network: Network,
}

impl Daemon {
    /// Starts it, waits until it answers, and watches it from then on.
    pub(super) fn start(node: &Node, network: Network) -> Result<Self> {
        let daemon = Self {
            process: Arc::new(Mutex::new(Some(spawn(node)?))),
            network,
        };
        node.wait_until_ready(|| has_ended(&mut daemon.lock()))?;
        let (process, node) = (Arc::downgrade(&daemon.process), node.clone());
        thread::spawn(move || {
            while let Some(process) = process.upgrade() {
                start_again(&node, &mut lock(&process));
                drop(process);
                thread::sleep(LOOK);
            }
        });
        Ok(daemon)
    }

    /// Ends it and starts it again; what it runs goes on meanwhile.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self, node: &Node) -> Result<()> {
        self.end();
        *self.lock() = Some(spawn(node)?);
        node.wait_until_ready(|| false)
    }

    fn end(&self) {
        let Some(mut process) = self.lock().take() else {
            return;
        };
        // Once it has been waited for, its number may be another's.
        if matches!(process.try_wait(), Ok(None)) {
            let id = Pid::from_raw(process.id().cast_signed());
            let _ = kill(id, Signal::SIGTERM);
        }
        let end = Instant::now() + STOP_LIMIT;
        while Instant::now() < end {
            if !matches!(process.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = process.kill();
        let _ = process.wait();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        lock(&self.process)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.network.remove();
        self.end();
    }
}

fn lock(process: &Mutex<Option<Child>>) -> MutexGuard<'_, Option<Child>> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_ended(process: &mut Option<Child>) -> bool {
    process
        .as_mut()
        .is_none_or(|it| !matches!(it.try_wait(), Ok(None)))
}

/// Starts it again if it has ended without having been asked to.
fn start_again(node: &Node, process: &mut Option<Child>) {
    let Some(child) = process else {
        return;
    };
    let Ok(Some(status)) = child.try_wait() else {
        return;
    };
    step(format!(
        "containerd has ended ({status}) and is started again"
    ));
    let again = spawn(node).inspect_err(|error| step(format!("it cannot be: {error:#}")));
    *process = again.ok();
}

fn spawn(node: &Node) -> Result<Child> {
    // One that is started again goes on in the same log.
    let log = File::options().create(true).append(true).open(node.log())?;
    let mut search = OsString::from(build::programs_directory());
    search.push(":");
    search.push(&node.release.programs);
    search.push(":");
    search.push(env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(node.release.containerd());
    command
        .arg("--config")
        .arg(node.directory.join("containerd.toml"))
        .env("PATH", search)
        .env("ORLOP_CONFIG", node.orlop_config_file())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: the call is async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
    let process = command
        .spawn()
        .context("cannot start containerd; `cargo testbed setup` installs it")?;
    fs::write(
        node.directory.join("containerd.pid"),
        process.id().to_string(),
    )?;
    Ok(process)
}
