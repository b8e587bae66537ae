//! Finds and executes the user's program, at the very end of making a process, within the container.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, execv};
use oci_spec::runtime::{Process, Spec};
use orlop_proto::agent::v1::not_executed::Reason;

use super::report::{Fatal, Report};
use crate::seccomp::Filter;
use crate::stdio::terminal;

/// Where programs are looked for when the process has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes what the spec says, and reports why it cannot.
#[derive(Clone)]
pub struct UserProgram {
    report: Report,
    filter: Option<Filter>,
}

impl UserProgram {
    /// Failures go to `report`; the program runs behind `filter`.
    pub fn new(report: Report, filter: Option<Filter>) -> Self {
        Self { report, filter }
    }
}

impl Executor for UserProgram {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(drop).map_err(|fatal| {
            self.report.fatal(&fatal);
            ExecutorValidationError::ArgValidationError(fatal.why)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let fatal = execute(spec, self.filter.as_ref());
        self.report.fatal(&fatal);
        Err(ExecutorError::Other(fatal.why))
    }
}

/// Returns only with a reason why it failed.
fn execute(spec: &Spec, filter: Option<&Filter>) -> Fatal {
    let (program, arguments) = match find(spec) {
        Ok(found) => found,
        Err(why) => return why,
    };
    restore_null_outputs();
    give_terminal_its_size(spec);
    // SAFETY: it sets how this process takes a signal, and there is one thread. Rust's start-up code has it ignored, and the
    // user's program would inherit that.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let name = arguments.first().cloned().unwrap_or_default();
    let c_strings = |texts: &[String]| -> Result<Vec<CString>, _> {
        texts
            .iter()
            .map(|text| CString::new(text.as_str()))
            .collect()
    };
    let path = CString::new(program.as_os_str().as_encoded_bytes());
    let (Ok(path), Ok(arguments)) = (path, c_strings(&arguments)) else {
        return format!("exec: {name:?}: an argument has a zero byte in it").into();
    };
    // Nothing but the execution itself may follow, for the filter need not allow anything else.
    if let Some(Err(error)) = filter.map(Filter::load) {
        return format!("exec: {name:?}: the seccomp filter cannot be loaded: {error}").into();
    }
    match execv(&path, &arguments) {
        Ok(never) => match never {},
        Err(errno) => not_executed(&name, errno),
    }
}

/// That the kernel does not execute `name`, as a shell tells it.
fn not_executed(name: &str, errno: Errno) -> Fatal {
    Fatal {
        reason: match errno {
            Errno::ENOENT | Errno::ENOTDIR => Reason::Missing,
            _ => Reason::Refused,
        },
        why: format!("exec: {name:?}: {}", errno.desc().to_lowercase()),
    }
}

/// The terminal is there before its user can say how large it is; a further process runs as soon as it is made.
fn give_terminal_its_size(spec: &Spec) {
    let process = spec.process().as_ref();
    let process = process.filter(|process| process.terminal().unwrap_or(false));
    if let Some(size) = process.and_then(Process::console_size) {
        // A program can do without.
        let _ = terminal::give_size(&io::stdin(), size.width(), size.height());
    }
}

/// Makes /dev/null writable where it is stdout or stderr: libcontainer has opened the container's own one, for reading.
fn restore_null_outputs() {
    let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") else {
        return;
    };
    let Ok(device) = null.metadata().map(|meta| meta.rdev()) else {
        return;
    };
    for output in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: the standard streams are open, and nothing here closes them.
        let fd = unsafe { BorrowedFd::borrow_raw(output) };
        if nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_rdev == device) {
            // SAFETY: dup2 has no memory to spoil; the stream becomes another open file.
            unsafe { libc::dup2(null.as_raw_fd(), output) };
        }
    }
}

/// The program's path, and the arguments.
fn find(spec: &Spec) -> Result<(PathBuf, Vec<String>), Fatal> {
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| "the spec has no process".to_owned())?;
    let arguments = process.args().clone().unwrap_or_default();
    let name = arguments
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| "exec: the process has no arguments".to_owned())?;
    let path = process
        .env()
        .iter()
        .flatten()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let program = look_up(name, path)?;
    Ok((program, arguments))
}

/// As execvp(3) finds it, but with the words that users of runc know.
fn look_up(name: &str, path: &str) -> Result<PathBuf, Fatal> {
    if name.contains('/') {
        return check(Path::new(name))
            .map(|()| PathBuf::from(name))
            .map_err(|errno| match errno {
                Errno::ENOENT => Fatal {
                    reason: Reason::Missing,
                    why: format!("exec: {name:?}: stat {name}: no such file or directory"),
                },
                other => not_executed(name, other),
            });
    }
    let mut denied = false;
    for directory in path.split(':') {
        // An empty element is the working directory.
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied {
        not_executed(name, Errno::EACCES)
    } else {
        Fatal {
            reason: Reason::Missing,
            why: format!("exec: {name:?}: executable file not found in $PATH"),
        }
    })
}

fn check(program: &Path) -> Result<(), Errno> {
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let meta = fs::metadata(program).map_err(errno)?;
    if !meta.is_file() {
        // A directory is not executed; the kernel says EACCES, too.
        return Err(if meta.is_dir() {
            Errno::EISDIR
        } else {
            Errno::EACCES
        });
    }
    access(program, AccessFlags::X_OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn finds_programs_as_a_shell_does() {
        assert_eq!(
            look_up("sh", "/nowhere::/bin").unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(look_up("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn says_what_is_wrong_in_known_words() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::write(&data, "x").unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o644)).unwrap();
        let path = dir.path().to_str().unwrap();
        for (name, reason, why) in [
            (
                "nope",
                Reason::Missing,
                "exec: \"nope\": executable file not found in $PATH",
            ),
            (
                "/nope/x",
                Reason::Missing,
                "exec: \"/nope/x\": stat /nope/x: no such file or directory",
            ),
            (
                "/etc/passwd/x",
                Reason::Missing,
                "exec: \"/etc/passwd/x\": not a directory",
            ),
            ("data", Reason::Refused, "exec: \"data\": permission denied"),
            ("/bin", Reason::Refused, "exec: \"/bin\": is a directory"),
        ] {
            let why = why.to_owned();
            assert_eq!(look_up(name, path).unwrap_err(), Fatal { reason, why });
        }
    }
}
