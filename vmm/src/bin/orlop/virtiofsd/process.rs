//! One virtiofsd: how it is started, heard, and ended.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_vmm::config::FsTag;

use super::sandbox::Sandbox;

/// The descriptor at which it finds its socket.
const LISTENER: i32 = 3;
/// How long it may take to end after its connection.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest line of it that is repeated at once.
const LINE_MAX: u64 = 1000;

/// The program, and what it may be locked into.
pub struct Program {
    path: PathBuf,
    sandbox: Sandbox,
}

/// A virtiofsd.
pub struct Process {
    tag: FsTag,
    child: Mutex<Child>,
    /// What it prints, until somebody listens to it.
    stderr: Mutex<Option<ChildStderr>>,
}

impl Program {
    /// That at `path`.
    pub fn new(path: PathBuf) -> Self {
        let sandbox = Sandbox::strongest();
        log::info!("{} with the sandbox {}", path.display(), sandbox.name());
        Program { path, sandbox }
    }

    /// Starts it for a directory. It serves who is connected to `listener`. To be called by the thread with whose end it is to end: that
    /// which runs the VM.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &self,
        tag: &FsTag,
        directory: &Path,
        readonly: bool,
        listener: UnixListener,
    ) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.path);
        command
            .arg(format!("--fd={LISTENER}"))
            .arg("--shared-dir")
            .arg(directory)
            .arg(format!("--sandbox={}", self.sandbox.name()))
            .args(self.identities())
            // Not every file system has handles, and to open files by them takes more rights.
            .arg("--inode-file-handles=never")
            .args(["--cache=auto", "--xattr", "--log-level=warn"])
            // As many open files as this process may have, which is all that there may be.
            .arg("--rlimit-nofile=0")
            .args(readonly.then_some("--readonly"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // What is typed at a terminal to end the VM is not for it.
            .process_group(0);
        let listener = OwnedFd::from(listener);
        let parent = std::process::id();
        let hook = move || die_with(parent).and_then(|()| inherit(&listener));
        // SAFETY: between fork and exec the hook makes system calls only: it neither allocates nor takes a lock.
        unsafe { command.pre_exec(hook) };
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        Ok(Process {
            tag: tag.clone(),
            stderr: Mutex::new(child.stderr.take()),
            child: Mutex::new(child),
        })
    }

    /// Who is root: in a user namespace of its own, where this user is the only one that there is, the guest's root is this user.
    fn identities(&self) -> Vec<String> {
        // SAFETY: they take nothing and cannot fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        if user == 0 || self.sandbox != Sandbox::Namespace {
            return Vec::new();
        }
        vec![
            format!("--uid-map=:0:{user}:1:"),
            format!("--gid-map=:0:{group}:1:"),
        ]
    }
}

/// Between fork and exec: has the process get SIGKILL when the thread that started it ends.
fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with integer arguments; it is async-signal-safe.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getppid takes nothing and cannot fail. A parent that died before the call above is noticed here.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Between fork and exec: has the process inherit `fd` as [`LISTENER`], and nothing else: not its own client, least of all.
fn inherit(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: descriptors above 2 are only marked to be closed on exec, which is what every one of ours wants. A kernel without the call
    // leaves the marks as they are, which Rust's library sets on all that it opens.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    let fd = fd.as_raw_fd();
    let done = if fd == LISTENER {
        // SAFETY: the descriptor is open; its mark is taken away.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }
    } else {
        // SAFETY: the descriptor is open. What was at the other number is this process's copy, which nothing needs any more.
        unsafe { libc::dup2(fd, LISTENER) }
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Process {
    /// Says in the log what it prints, until it ends.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn listen(self: &Arc<Self>) -> io::Result<()> {
        let Some(stderr) = locked(&self.stderr).take() else {
            return Ok(());
        };
        let process = self.clone();
        thread::Builder::new()
            .name("virtiofsd-log".into())
            .spawn(move || {
                let mut lines = BufReader::new(stderr);
                while let Some(line) = next_line(&mut lines) {
                    log::warn!("virtiofsd of {}: {line}", process.tag);
                }
                // Its end, which may come while the VM lives.
                process.wait();
            })?;
        Ok(())
    }

    /// Waits for its end, which its client's has caused, and sees to it if it does not come.
    pub fn wait(&self) {
        if !self.ends_within(END_TIMEOUT) {
            log::warn!("the virtiofsd of {} does not end: it is killed", self.tag);
            self.kill();
        }
    }

    /// Ends it.
    pub fn kill(&self) {
        let mut child = locked(&self.child);
        // One that has ended already is none to complain about.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn ends_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if !matches!(locked(&self.child).try_wait(), Ok(None)) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// If it has ended, or is about to: how, and the last that it said, if that was not heard yet.
    pub fn last_words(&self) -> Option<String> {
        let mut lines = BufReader::new(locked(&self.stderr).take()?);
        if !self.ends_within(Duration::from_millis(500)) {
            return None;
        }
        let status = locked(&self.child).try_wait().ok().flatten()?;
        let said = std::iter::from_fn(|| next_line(&mut lines)).last();
        let said = said.map(|line| format!(": {line}")).unwrap_or_default();
        Some(format!(
            "the virtiofsd of {} ended ({status}){said}",
            self.tag
        ))
    }
}

/// The next line that is not empty, without what virtiofsd puts before it, and without anything that a terminal would obey.
fn next_line(from: &mut BufReader<ChildStderr>) -> Option<String> {
    loop {
        let mut bytes = Vec::new();
        match from.take(LINE_MAX).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        let line = tidy(&String::from_utf8_lossy(&bytes));
        if !line.is_empty() {
            return Some(line);
        }
    }
}

fn tidy(line: &str) -> String {
    let line = line.trim();
    // [2026-01-31T12:00:00Z ERROR virtiofsd] …
    let words = match line
        .strip_prefix('[')
        .and_then(|line| line.split_once("] "))
    {
        Some((_, words)) => words,
        None => line,
    };
    words.replace(char::is_control, " ")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // There is no state in between that a panic could have left.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_was_said() {
        for (line, tidied) in [
            (
                "[2026-01-31T12:00:00Z ERROR virtiofsd] no room\n",
                "no room",
            ),
            ("thread 'main' panicked\r\n", "thread 'main' panicked"),
            ("a name with \u{1b}[2J in it", "a name with  [2J in it"),
            ("[]", "[]"),
            ("\n", ""),
        ] {
            assert_eq!(tidy(line), tidied);
        }
    }

    /// A script in place of the program, which reads it from the directory.
    fn started(script: &str) -> (Arc<Process>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("virtiofsd");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, permissions).unwrap();
        let (listener, _client) = orlop_vmm::socket::with_client(directory.path()).unwrap();
        let program = Program {
            path,
            sandbox: Sandbox::None,
        };
        // Another test's process may hold the file open for writing between its fork and its exec.
        let listener = || listener.try_clone().unwrap();
        let tag = "t".parse().unwrap();
        let start = || program.start(&tag, Path::new("/"), true, listener());
        let process = std::iter::repeat_with(start).take(100).find_map(Result::ok);
        (Arc::new(process.unwrap()), directory)
    }

    #[test]
    fn it_gets_its_socket_and_nothing_else() {
        // 10 and 255 are where shells have their script.
        let script = "for fd in $(seq 3 9) $(seq 11 254); do \
                      [ -e /proc/$$/fd/$fd ] && echo $fd $(readlink /proc/$$/fd/$fd) >&2; done";
        let (process, _directory) = started(script);
        let mut lines = BufReader::new(locked(&process.stderr).take().unwrap());
        let socket = next_line(&mut lines).unwrap();
        assert!(socket.starts_with("3 socket:"), "{socket}");
        assert_eq!(next_line(&mut lines), None);
        process.wait();
    }

    #[test]
    fn why_it_ended_is_heard() {
        let (ended, _directory) = started("echo '[now ERROR] no room' >&2; exit 3");
        let words = ended.last_words().unwrap();
        assert!(words.contains("exit status: 3): no room"), "{words}");
        let (alive, _directory) = started("exec sleep 100");
        assert_eq!(alive.last_words(), None);
        alive.kill();
    }
}
