//! A process of the cluster: its log, its readiness, its end.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Files;

/// How long a process may take to end once it was asked to.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How often is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(100);
/// How much of a log is shown.
const LOG_LINES: usize = 20;

/// A process that ends with this value, or with the thread that started it.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, whose output is the log of `name`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn start(name: &str, mut command: Command, files: &Files) -> Result<Self> {
        let log = files.log(name);
        // One that is started again goes on in the same log.
        let output = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // SAFETY: the call is async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
        }
        let program = command.get_program().display().to_string();
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Waits until `look` has found what it looks for.
    ///
    /// # Errors
    /// When the process ends before that, or `limit` has passed.
    pub(super) fn wait_until<T>(
        &mut self,
        limit: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended: {status}; its log says:\n{}",
                    self.name,
                    self.log()
                );
            }
            if Instant::now() > end {
                let (name, seconds) = (&self.name, limit.as_secs());
                bail!(
                    "{name} is not ready after {seconds} s; its log says:\n{}",
                    self.log()
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// Waits for a process that ends by itself.
    ///
    /// # Errors
    /// When it does not, or ends with another status than 0.
    pub(super) fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    bail!(
                        "{} ended: {status}; its log says:\n{}",
                        self.name,
                        self.log()
                    )
                }
                None => thread::sleep(LOOK),
            }
        }
        bail!("{} does not end; its log says:\n{}", self.name, self.log())
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end, and kills it if it does not.
    pub(super) fn end(&mut self) {
        let end = Instant::now() + END_LIMIT;
        // Once it has been waited for, its number may be another's.
        if !self.has_ended() {
            let id = Pid::from_raw(self.child.id().cast_signed());
            let _ = kill(id, Signal::SIGTERM);
        }
        while Instant::now() < end {
            if self.has_ended() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of its log, for people.
    fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_LINES);
        lines
            .into_iter()
            .skip(skipped)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
