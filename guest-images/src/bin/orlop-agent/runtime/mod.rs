//! The program that makes containers and processes in them, by libcontainer.
//!
//! libcontainer forks and goes on in the child, which is undefined behaviour in a process with threads; so the agent starts itself
//! anew for each ([`Request`] as the one argument) and this program does it. It has a single thread. What it makes becomes the
//! agent's own child (libcontainer's `as_sibling`), so that the agent hears of its exit.
//!
//! It has two pipes to the agent, whose numbers are in the request. On the first it answers with one line ([`Answer`]), and ends.
//! The second ([`report`]) stays open in the process that is made until that executes the user's program: its end says that this
//! has worked, and what is written to it why it has not.

mod executor;
mod propagation;
pub mod report;

use std::error::Error as _;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use oci_spec::runtime::{Mount, Spec};
use serde::{Deserialize, Serialize};

use self::executor::UserProgram;
use self::report::Report;
use crate::seccomp::Filter;

/// What is to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// A container or a process in one.
    pub make: Make,
    /// The container's id.
    pub container: String,
    /// The directory of libcontainer's own state; the container's is below it, by its id.
    pub state: PathBuf,
    /// The directory with `config.json`.
    pub bundle: PathBuf,
    /// Where the terminal's master goes, if there is a terminal.
    pub console: Option<PathBuf>,
    /// The pipe for the answer.
    pub answer_fd: RawFd,
    /// The pipe for the report.
    pub report_fd: RawFd,
}

/// The kinds of things to make.
#[derive(Debug, Serialize, Deserialize)]
pub enum Make {
    /// A container, whose process waits to be started.
    Container,
    /// A further process in a container that has been started. It runs at once.
    Process {
        /// The file with the OCI `process` object.
        file: PathBuf,
    },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The process that was made.
    Pid(i32),
    /// Why none was, in one line.
    Error(String),
}

/// Does what the request says.
pub fn main(request: &OsStr) -> ExitCode {
    let request: Request = match serde_json::from_slice(request.as_encoded_bytes()) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("orlop-agent: malformed runtime request: {error}");
            return ExitCode::from(2);
        }
    };
    let (Some(answer_to), Some(report_to)) = (adopt(request.answer_fd), adopt(request.report_fd))
    else {
        eprintln!("orlop-agent: the runtime's pipes are not there");
        return ExitCode::from(2);
    };
    let report = Report::new(report_to);
    report.collect_errors();
    let answer = match make(&request, report) {
        Ok(pid) => Answer::Pid(pid),
        Err(error) => Answer::Error(error),
    };
    let line = serde_json::to_string(&answer).unwrap_or_default() + "\n";
    match fs::File::from(answer_to).write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Takes over a descriptor that the agent has left open for us, and lets no program that we execute have it.
fn adopt(fd: RawFd) -> Option<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return None;
    }
    // SAFETY: the agent has opened it for this program alone, and it is adopted once. Were it not open, fcntl says so.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Some(fd),
        Err(_) => {
            // Dropping what is not open would be an error of its own.
            std::mem::forget(fd);
            None
        }
    }
}

fn make(request: &Request, report: Report) -> Result<i32, String> {
    let spec = Spec::load(request.bundle.join("config.json")).map_err(|error| error.to_string())?;
    // Not libcontainer's to do: it reads masked comparisons the other way round than runc, forgets about further processes, and would
    // have a profile allow what it needs itself.
    let filter = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref())
        .map(Filter::of)
        .transpose()
        .map_err(|error| error.to_string())?;
    let builder = ContainerBuilder::new(request.container.clone(), SyscallType::default())
        .with_executor(UserProgram::new(report.clone(), filter))
        .with_console_socket(request.console.clone())
        .with_root_path(&request.state)
        .map_err(one_line)?;
    match &request.make {
        Make::Container => {
            prepare_root(&spec)?;
            let mut container = builder
                .as_init(&request.bundle)
                .with_systemd(false)
                .with_detach(true)
                .as_sibling(true)
                .build()
                .map_err(|error| {
                    if let Some(why) = unknown_file_system(&spec) {
                        report.fatal(&why.into());
                    }
                    one_line(error)
                })?;
            let pid = container
                .pid()
                .map(|pid| pid.as_raw())
                .ok_or_else(|| "the container has no process".to_owned())?;
            if let Err(why) = propagation::set(pid, &spec) {
                // It is not to be found where nobody has been told of it.
                container.delete(true).map_err(one_line)?;
                return Err(why);
            }
            Ok(pid)
        }
        Make::Process { file } => {
            // The agent starts a container by itself, which libcontainer's notes do not know.
            let mut container =
                Container::load(request.state.join(&request.container)).map_err(one_line)?;
            if container.status() != ContainerStatus::Running {
                container
                    .set_status(ContainerStatus::Running)
                    .save()
                    .map_err(one_line)?;
            }
            let pid = builder
                .as_tenant()
                .with_detach(true)
                .as_sibling(true)
                .with_process(Some(file))
                .build()
                .map_err(one_line)?;
            Ok(pid.as_raw())
        }
    }
}

/// Checks that there is something in the root file system, and makes the working directory if it is missing there, as runc does:
/// an image may name one that no layer holds.
fn prepare_root(spec: &Spec) -> Result<(), String> {
    let root = spec
        .root()
        .as_ref()
        .map(|root| root.path().clone())
        .ok_or("the spec names no root file system")?;
    let mut entries = fs::read_dir(&root)
        .map_err(|error| format!("the root file system {}: {error}", root.display()))?;
    if entries.next().is_none() {
        return Err(format!("the root file system {} is empty", root.display()));
    }
    if let Some(process) = spec.process() {
        // Where this fails, changing into the directory fails too, and says so.
        let _ = pathrs::Root::open(&root)
            .and_then(|root| root.mkdir_all(process.cwd(), &fs::Permissions::from_mode(0o755)));
    }
    Ok(())
}

/// Whether a mount needs a file system that this kernel does not have.
fn unknown_file_system(spec: &Spec) -> Option<String> {
    let known = fs::read_to_string("/proc/filesystems").ok()?;
    let is_known = |kind: &str| {
        // The name is the last word of a line. A mount of kind cgroup becomes cgroup2; bind mounts have no kind of their own.
        ["bind", "none", "cgroup"].contains(&kind)
            || known
                .lines()
                .any(|line| line.split_whitespace().next_back() == Some(kind))
    };
    let binds = |mount: &Mount| {
        mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
    };
    spec.mounts().iter().flatten().find_map(|mount| {
        let kind = mount.typ().as_deref()?;
        (!is_known(kind) && !binds(mount)).then(|| {
            format!(
                "the guest's kernel has no file system {kind:?}, which the mount at {} needs",
                mount.destination().display()
            )
        })
    })
}

/// An error with all that caused it.
fn one_line(error: LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
