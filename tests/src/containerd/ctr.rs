//! containerd's own command line client, with its output captured and a time limit.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Node;

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(240);

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The exit status; 128 + signal when a signal ended it.
    pub status: u8,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Done {
    /// Standard output as text.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    collectors: Collectors,
}

#[derive(Debug)]
struct Collectors {
    stdout: thread::JoinHandle<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
}

impl Node {
    /// Runs `ctr` in a namespace to its end.
    ///
    /// # Errors
    /// When it cannot be run, or does not end in time.
    pub fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<Done> {
        self.ctr_with_input(namespace, arguments, &[])
    }

    /// Runs `ctr` with `input` at its standard input.
    ///
    /// # Errors
    /// When it cannot be run, or does not end in time.
    pub fn ctr_with_input(
        &self,
        namespace: &str,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<Done> {
        self.ctr_start(namespace, arguments, input)?.wait(LIMIT)
    }

    /// Starts `ctr` and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn ctr_start(&self, namespace: &str, arguments: &[&str], input: &[u8]) -> Result<Running> {
        let mut command = Command::new(self.release.ctr());
        command.arg("--address").arg(self.socket());
        command.args(["--namespace", namespace]).args(arguments);
        Running::start(command, input)
    }
}

impl Running {
    /// Starts `command` with `input` at its standard input, which then ends.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(mut command: Command, input: &[u8]) -> Result<Self> {
        let program = command.get_program().display().to_string();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("no pipes to {program}");
        };
        let input = input.to_vec();
        // A command that reads no further is no error here: its status tells.
        thread::spawn(move || stdin.write_all(&input));
        let collectors = Collectors {
            stdout: collect(stdout),
            stderr: collect(stderr),
        };
        Ok(Self { child, collectors })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it has not ended after `limit`; it is killed then.
    pub fn wait(mut self, limit: Duration) -> Result<Done> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Done {
                    status: crate::host::outcome::shell_status(status),
                    stdout: self.collectors.stdout.join().unwrap_or_default(),
                    stderr: self.collectors.stderr.join().unwrap_or_default(),
                });
            }
            if Instant::now() > end {
                self.child.kill()?;
                self.child.wait()?;
                let stdout = self.collectors.stdout.join().unwrap_or_default();
                let stderr = self.collectors.stderr.join().unwrap_or_default();
                bail!(
                    "no end after {} s; so far it said {:?} and {:?}",
                    limit.as_secs(),
                    String::from_utf8_lossy(&stdout),
                    String::from_utf8_lossy(&stderr)
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is kept; the status tells the rest.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
