//! What is done with containers that exist: signals, the freezer, and questions.

use std::time::Duration;

use nix::errno::Errno;
use orlop_proto::agent::v1::{StateResponse, StatsResponse, WaitResponse};

use super::process::exit_message;
use super::{Containers, Entry};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::ids::{Id, ProcessId};
use crate::reaper::exited;

/// How long killed containers may take to be gone when the guest shuts down.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

impl Containers {
    /// Sends a signal to a process, or to all of its container's.
    ///
    /// # Errors
    /// As the interface says.
    pub async fn signal(&self, id: &ProcessId, signal: u32, all: bool) -> Result<()> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal))
            .ok_or_else(|| Error::Invalid(format!("{signal} is not a signal's number")))?;
        let container = self.container(&id.container)?;
        let process = container.process(id)?;
        if !all {
            let live = process.running()?;
            return kill(live.pid, signal)
                .map_err(|errno| Error::system(format_args!("cannot signal {id}"), errno.desc()));
        }
        if signal == libc::SIGKILL {
            return container.cgroup.kill().map_err(|error| {
                Error::system(
                    format_args!("cannot kill container {}", id.container),
                    error,
                )
            });
        }
        // They stand still meanwhile: the end of one, the first's above all, must not take others away before their signal. A
        // container that cannot be stopped in time gets its signals all the same.
        let paused = container.cgroup.is_frozen();
        let _ = container.cgroup.freeze(true).await;
        for pid in container.cgroup.processes() {
            // One that has gone meanwhile needs no signal.
            let _ = kill(pid, signal);
        }
        if !paused {
            container.cgroup.freeze(false).await.map_err(|error| {
                Error::system(
                    format_args!("cannot thaw container {}", id.container),
                    error,
                )
            })?;
        }
        Ok(())
    }

    /// Waits for a process; see [`Process::wait`].
    ///
    /// # Errors
    /// As the interface says.
    pub async fn wait(&self, id: &ProcessId) -> Result<WaitResponse> {
        let process = self.process(id)?;
        process.wait().await.map(exit_message)
    }

    /// What is known of a process.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn state(&self, id: &ProcessId) -> Result<StateResponse> {
        let container = self.container(&id.container)?;
        let process = container.process(id)?;
        Ok(process.state(container.cgroup.is_frozen()))
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn pids(&self, container: &Id) -> Result<Vec<u32>> {
        let pids = self.container(container)?.cgroup.processes();
        Ok(pids.into_iter().map(i32::unsigned_abs).collect())
    }

    /// Freezes or thaws a container.
    ///
    /// # Errors
    /// As the interface says.
    pub async fn freeze(&self, id: &Id, frozen: bool) -> Result<()> {
        let container = self.container(id)?;
        if !container.init.is_started() || container.init.is_over() {
            return Err(Error::State(format!("container {id} is not running")));
        }
        let doing = if frozen { "pause" } else { "resume" };
        container
            .cgroup
            .freeze(frozen)
            .await
            .map_err(|error| Error::system(format_args!("cannot {doing} container {id}"), error))
    }

    /// A container's control group.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn stats(&self, container: &Id) -> Result<StatsResponse> {
        Ok(self.container(container)?.cgroup.stats())
    }

    /// Gives a container other limits. `resources` is an OCI object as JSON.
    ///
    /// # Errors
    /// As the interface says.
    pub fn update(&self, id: &Id, resources: &[u8]) -> Result<()> {
        let container = self.container(id)?;
        let resources = serde_json::from_slice(resources)
            .map_err(|error| Error::Invalid(format!("these are no limits: {error}")))?;
        if container.init.is_over() {
            return Err(Error::State(format!("container {id} has exited")));
        }
        container.cgroup.set_limits(&resources).map_err(|error| {
            Error::system(
                format_args!("container {id} cannot have these limits"),
                error,
            )
        })
    }

    /// Waits until more than `seen` of a container's processes have been killed for want of memory, or its own process has exited.
    /// Answers how many were killed.
    ///
    /// # Errors
    /// `NOT_FOUND`; what the kernel says where memory is not accounted for.
    pub async fn wait_oom(&self, id: &Id, seen: u64) -> Result<u64> {
        let container = self.container(id)?;
        let failed = |error| {
            Error::system(
                format_args!("cannot watch the memory of container {id}"),
                error,
            )
        };
        let watch = container.cgroup.watch_memory().map_err(failed)?;
        let mut exit = container.init.live()?.exit_watch();
        tokio::select! {
            kills = watch.more_than(seen) => kills,
            _ = exited(&mut exit) => watch.kills(),
        }
        .map_err(failed)
    }

    /// Kills everything, and waits a while for it to be gone.
    pub async fn kill_all(&self) {
        let _ = Cgroup::all().kill();
        let mut exits: Vec<_> = self
            .known()
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(container) => container.init.live().ok(),
                Entry::Busy => None,
            })
            .map(|live| live.exit_watch())
            .collect();
        let all = async {
            for exit in &mut exits {
                exited(exit).await;
            }
        };
        let _ = tokio::time::timeout(KILL_PATIENCE, all).await;
    }
}

fn kill(pid: i32, signal: i32) -> std::result::Result<(), Errno> {
    // Not nix's kill: it does not know real-time signals.
    // SAFETY: kill has no memory to spoil.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}
