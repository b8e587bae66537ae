//! containerd's own command line client, with its output captured and a time limit.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Node;

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(240);
/// How long a command that was killed may take to have said everything.
const LAST_WORDS: Duration = Duration::from_secs(2);

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

/// A command that runs. One that is left over when a story fails is ended, and what it has said is shown: it may be the reason.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Until it has been waited for.
    collectors: Option<Collectors>,
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
        let collectors = Some(Collectors {
            stdout: collect(stdout),
            stderr: collect(stderr),
        });
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
                let (stdout, stderr) = self.said();
                return Ok(Done {
                    status: crate::host::outcome::shell_status(status),
                    stdout,
                    stderr,
                });
            }
            if Instant::now() > end {
                self.child.kill()?;
                self.child.wait()?;
                let (stdout, stderr) = self.said();
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

    /// All that it has written, once it has ended.
    fn said(&mut self) -> (Vec<u8>, Vec<u8>) {
        let collected = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
        let collectors = self.collectors.take();
        collectors.map_or_else(Default::default, |collectors| {
            (collected(collectors.stdout), collected(collectors.stderr))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() || self.collectors.is_none() {
            return;
        }
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A child of its own may still hold the pipes.
        let end = Instant::now() + LAST_WORDS;
        let open = |collectors: &Collectors| {
            !collectors.stderr.is_finished() || !collectors.stdout.is_finished()
        };
        while self.collectors.as_ref().is_some_and(open) {
            if Instant::now() > end {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let (_, stderr) = self.said();
        let stderr = String::from_utf8_lossy(&stderr);
        eprintln!("a program that was running ({ended:?} before it was killed) said:\n{stderr}");
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
