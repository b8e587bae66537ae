//! The process of a node's containerd: started, started again when it ends by itself, as systemd would do it, and ended with its owner.

use std::env;
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
    kept: Arc<Mutex<Kept>>,
    /// What goes with it; `None` where somebody else has made it.
    network: Option<Network>,
}

/// What is kept running.
#[derive(Debug)]
struct Kept {
    node: Node,
    process: Option<Child>,
}

impl Daemon {
    /// Starts it, waits until it answers, and watches it from then on. `network` goes with it.
    pub(super) fn start(node: &Node, network: Option<Network>) -> Result<Self> {
        let daemon = Self {
            kept: Arc::new(Mutex::new(Kept {
                node: node.clone(),
                process: Some(spawn(node)?),
            })),
            network,
        };
        node.wait_until_ready(|| daemon.lock().has_ended())?;
        let kept = Arc::downgrade(&daemon.kept);
        thread::spawn(move || {
            while let Some(kept) = kept.upgrade() {
                lock(&kept).start_again();
                drop(kept);
                thread::sleep(LOOK);
            }
        });
        Ok(daemon)
    }

    /// Ends it and starts that of `node`, which is the same one or has another containerd; what it runs goes on meanwhile.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self, node: &Node) -> Result<()> {
        self.end();
        *self.lock() = Kept {
            node: node.clone(),
            process: Some(spawn(node)?),
        };
        node.wait_until_ready(|| false)
    }

    fn end(&self) {
        let Some(mut process) = self.lock().process.take() else {
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

    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(network) = &self.network {
            network.remove();
        }
        self.end();
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn has_ended(&mut self) -> bool {
        self.process
            .as_mut()
            .is_none_or(|it| !matches!(it.try_wait(), Ok(None)))
    }

    /// Starts it again if it has ended without having been asked to.
    fn start_again(&mut self) {
        let Some(child) = &mut self.process else {
            return;
        };
        let Ok(Some(status)) = child.try_wait() else {
            return;
        };
        step(format!(
            "containerd has ended ({status}) and is started again"
        ));
        let again = spawn(&self.node).inspect_err(|error| step(format!("it cannot be: {error:#}")));
        self.process = again.ok();
    }
}

fn spawn(node: &Node) -> Result<Child> {
    // One that is started again goes on in the same log.
    let log = File::options().create(true).append(true).open(node.log())?;
    let mut search = node.other_shims().into_os_string();
    search.push(":");
    search.push(build::programs_directory());
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
