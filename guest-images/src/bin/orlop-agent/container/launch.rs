//! Starts the program that makes a process ([`crate::runtime`]), hands it the process's standard streams, and takes the other ends.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio as ChildStdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use orlop_proto::agent::v1::Stdio;

use super::{Places, Streams};
use crate::error::{Error, Result};
use crate::ids::ProcessId;
use crate::reaper::{ExitWatch, Reaper, exited};
use crate::runtime::report::Reported;
use crate::runtime::{Answer, Make, Request};
use crate::stdio::fd::Fd;
use crate::stdio::terminal::ConsoleSocket;

/// What is asked of the program.
pub struct Launch<'a> {
    /// The process.
    pub id: &'a ProcessId,
    /// What it is.
    pub make: Make,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// The streams that it gets.
    pub stdio: Stdio,
}

/// A process that has been made.
pub struct Launched {
    /// Its number.
    pub pid: i32,
    /// Tells of its exit.
    pub exit: ExitWatch,
    /// Our ends of its streams.
    pub streams: Streams,
    /// Ends when it executes the user's program.
    pub report: ReportPipe,
}

/// The reading side of a [`crate::runtime::report`].
pub struct ReportPipe(Fd);

/// An answer or a report longer than this is cut.
const MAX_TEXT: usize = 64 << 10;

/// How long the rest of a report may take to arrive after the process that was being made is gone.
const REST: Duration = Duration::from_millis(200);

/// Makes a process.
///
/// # Errors
/// When the system refuses, or with what the program says, in one line.
pub async fn launch(
    reaper: &Arc<Reaper>,
    places: &Places,
    request: Launch<'_>,
) -> Result<Launched> {
    let system = |error: io::Error| Error::system("cannot start the container runtime", error);
    let expectation = reaper.expect();
    let (answer, answer_end) = pipe().map_err(system)?;
    let (report, report_end) = pipe().map_err(system)?;
    // A descriptor's number is this launch's alone for as long as it is open.
    let number = answer.as_raw_fd();
    let answer = Fd::new(answer).map_err(system)?;
    let report = ReportPipe(Fd::new(report).map_err(system)?);
    let console = request
        .terminal
        .then(|| ConsoleSocket::new(places.console(number)))
        .transpose()
        .map_err(system)?;
    let (streams, child) = ends(request.stdio, request.terminal).map_err(system)?;

    let order = Request {
        make: request.make,
        container: request.id.container.as_str().to_owned(),
        state: places.state.clone(),
        bundle: places.bundle(&request.id.container),
        console: console.as_ref().map(|console| console.path().to_owned()),
        answer_fd: answer_end.as_raw_fd(),
        report_fd: report_end.as_raw_fd(),
    };
    let helper = spawn(&order, child, &[&answer_end, &report_end]).map_err(system)?;
    drop((answer_end, report_end));
    let mut helper_exit = expectation.claim(helper);

    let text = read_answer(&answer, &mut helper_exit).await;
    let made = match serde_json::from_slice(&text) {
        Ok(Answer::Pid(pid)) => Ok(pid),
        Ok(Answer::Error(error)) => Err(error),
        Err(_) => {
            let exit = exited(&mut helper_exit).await;
            Err(format!(
                "the container runtime ended unexpectedly with status {}",
                exit.status
            ))
        }
    };
    match made {
        Ok(pid) => {
            let exit = expectation.claim(pid);
            let mut streams = streams;
            if let Some(console) = console {
                let master = console.receive().and_then(Fd::new).map_err(|error| {
                    Error::system("the container runtime made no terminal", error)
                })?;
                streams = Streams::of_terminal(Arc::new(master), request.stdio);
            }
            Ok(Launched {
                pid,
                exit,
                streams,
                report,
            })
        }
        Err(error) => {
            let Reported { fatal, logged } = report.finish().await;
            Err(fatal.map_or_else(|| Error::Runtime(logged.unwrap_or(error)), Error::from))
        }
    }
}

impl ReportPipe {
    /// Waits until the user's program is executed.
    ///
    /// # Errors
    /// With why it is not.
    pub async fn executed(&self, exit: &mut ExitWatch) -> Result<()> {
        let mut text = Vec::new();
        tokio::select! {
            () = self.read_into(&mut text) => {}
            _ = exited(exit) => self.read_rest(&mut text),
        }
        match Reported::parse(&text).fatal {
            Some(fatal) => Err(fatal.into()),
            None => Ok(()),
        }
    }

    /// What has been reported by a process that could not be made.
    async fn finish(&self) -> Reported {
        let mut text = Vec::new();
        let _ = tokio::time::timeout(REST, self.read_into(&mut text)).await;
        Reported::parse(&text)
    }

    async fn read_into(&self, text: &mut Vec<u8>) {
        let mut chunk = [0; 4096];
        while text.len() < MAX_TEXT
            && let Ok(length @ 1..) = self.0.read(&mut chunk).await
        {
            text.extend(chunk.get(..length).unwrap_or_default());
        }
    }

    fn read_rest(&self, text: &mut Vec<u8>) {
        let mut chunk = [0; 4096];
        while text.len() < MAX_TEXT
            && let Ok(length @ 1..) = self.0.read_now(&mut chunk)
        {
            text.extend(chunk.get(..length).unwrap_or_default());
        }
    }
}

/// Reads the one line of the answer; less when the program ends without one.
async fn read_answer(answer: &Fd, helper: &mut ExitWatch) -> Vec<u8> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = tokio::select! {
            biased;
            read = answer.read(&mut chunk) => read,
            // It may have answered with its last breath. The end of the pipe need not come: what it forked has it, too.
            _ = exited(helper) => answer.read_now(&mut chunk),
        };
        match read {
            Ok(length @ 1..) => text.extend(chunk.get(..length).unwrap_or_default()),
            Ok(_) | Err(_) => return text,
        }
        if text.ends_with(b"\n") || text.len() > MAX_TEXT {
            return text;
        }
    }
}

/// The standard streams of the program, which it hands on.
struct ChildEnds {
    stdin: ChildStdio,
    stdout: ChildStdio,
    stderr: ChildStdio,
}

fn ends(wanted: Stdio, terminal: bool) -> io::Result<(Streams, ChildEnds)> {
    let mut streams = Streams::default();
    let mut child = ChildEnds {
        stdin: ChildStdio::null(),
        stdout: ChildStdio::null(),
        stderr: ChildStdio::null(),
    };
    if terminal {
        return Ok((streams, child));
    }
    if wanted.stdin {
        let (reader, writer) = pipe()?;
        streams.stdin = Some(Arc::new(Fd::new(writer)?));
        child.stdin = reader.into();
    }
    if wanted.stdout {
        let (reader, writer) = pipe()?;
        streams.stdout = Some(Arc::new(Fd::new(reader)?));
        child.stdout = writer.into();
    }
    if wanted.stderr {
        let (reader, writer) = pipe()?;
        streams.stderr = Some(Arc::new(Fd::new(reader)?));
        child.stderr = writer.into();
    }
    Ok((streams, child))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Starts the program; the reaper hears of its end.
fn spawn(request: &Request, child: ChildEnds, kept: &[&OwnedFd]) -> io::Result<i32> {
    let request = serde_json::to_string(request)?;
    let kept: Vec<i32> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["runtime", &request])
        .env_clear()
        .current_dir("/")
        .stdin(child.stdin)
        .stdout(child.stdout)
        .stderr(child.stderr);
    // SAFETY: between fork and exec this calls fcntl alone, which is async-signal-safe, and allocates nothing. The descriptors
    // stay open in this process until spawn has returned.
    unsafe {
        command.pre_exec(move || {
            for fd in &kept {
                let fd = std::os::fd::BorrowedFd::borrow_raw(*fd);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    // Dropping it does not wait for it.
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Writes a file for the program to read.
///
/// # Errors
/// What the system says.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let bytes =
        serde_json::to_vec(value).map_err(|error| Error::system("cannot write JSON", error))?;
    fs::write(path, bytes).map_err(|error| Error::system(path.display(), error))
}
