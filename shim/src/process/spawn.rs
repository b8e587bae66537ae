//! Starting the programs that a pod needs, so that they cannot outlive the shim.
//!
//! Each child gets SIGKILL when its parent dies (`PR_SET_PDEATHSIG`). What counts as the parent is the *thread* that
//! forked: a child of a pool's thread would die whenever the pool lets that thread go. So one thread, which lives as long
//! as the process, does nothing but fork.
//!
//! A child is reaped by its own id alone. Waiting for "any child" would take another's exit from whoever waits for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;

use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::identity::ProcessIdentity;
use super::pidfd;

type Order = (Command, oneshot::Sender<io::Result<Child>>);

/// Starts programs from the one thread that lives as long as the process.
#[derive(Clone, Debug)]
pub struct Spawner {
    orders: mpsc::Sender<Order>,
}

impl Spawner {
    /// Makes the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn new() -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    // The caller may have gone: then the child must not stay.
                    if let Err(Ok(mut orphan)) = answer.send(command.spawn()) {
                        let _ = orphan.kill();
                        let _ = orphan.wait();
                    }
                }
                // Never return: children die with the thread that made them.
                loop {
                    std::thread::park();
                }
            })?;
        Ok(Self { orders })
    }

    /// Starts `command`. Of this process's descriptors the child has standard input, output and error as `command` says,
    /// and `inherited` as descriptors 3, 4 and so on.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn spawn(
        &self,
        mut command: Command,
        inherited: Vec<OwnedFd>,
    ) -> io::Result<Running> {
        prepare(&mut command, inherited);
        let (answer, spawned) = oneshot::channel();
        let gone = || io::Error::other("the spawner thread has gone");
        self.orders.send((command, answer)).map_err(|_| gone())?;
        let child = spawned.await.map_err(|_| gone())??;
        Running::watch(child)
    }
}

/// The descriptor at which a child finds the first of what it inherits.
pub const INHERITED_FD: i32 = 3;

/// Makes the child die with this thread and inherit nothing else.
fn prepare(command: &mut Command, inherited: Vec<OwnedFd>) {
    let parent = std::process::id();
    let mut inherited = Inherited::new(inherited);
    let hook = move || {
        // SAFETY: prctl with integer arguments; it is async-signal-safe.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getppid takes nothing and cannot fail. A parent that died before the call above is noticed here.
        if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        inherited.pass_only()
    };
    // SAFETY: between fork and exec the hook makes system calls only: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(hook) };
}

/// Descriptors that a child is given.
#[derive(Debug)]
pub struct Inherited {
    /// They stay open until the child has its own.
    files: Vec<OwnedFd>,
    /// Where the child has them on their way. It is here since nothing may be allocated between fork and exec.
    places: Vec<RawFd>,
}

impl Inherited {
    /// Those that the child finds as descriptors 3, 4 and so on.
    pub fn new(files: Vec<OwnedFd>) -> Self {
        let places = files.iter().map(AsRawFd::as_raw_fd).collect();
        Self { files, places }
    }

    /// Between fork and exec: moves them to where the child finds them, and marks all others to be closed.
    ///
    /// # Errors
    /// What the system says.
    pub fn pass_only(&mut self) -> io::Result<()> {
        // SAFETY: descriptors above 2 are only marked to be closed on exec, which is what every one of ours wants.
        // A kernel without the call leaves the marks as they are, which Rust's library sets on all that it opens.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
        }
        let count = i32::try_from(self.files.len()).map_err(|_| too_many())?;
        let end = INHERITED_FD.checked_add(count).ok_or_else(too_many)?;
        // One that stands where another is to be would be lost: first all go beyond.
        for place in &mut self.places {
            // SAFETY: the descriptor is open: `files` owns it. The copy is closed on exec.
            *place = checked(unsafe { libc::fcntl(*place, libc::F_DUPFD_CLOEXEC, end) })?;
        }
        for (place, target) in self.places.iter().zip(INHERITED_FD..) {
            // SAFETY: the copy was made above. That which is made of it here is not marked close-on-exec.
            checked(unsafe { libc::dup2(*place, target) })?;
        }
        Ok(())
    }
}

fn too_many() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A child that runs, or has ended and waits to be reaped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    identity: ProcessIdentity,
}

impl Running {
    fn watch(mut child: Child) -> io::Result<Self> {
        let watched = pidfd::open(child.id()).and_then(|fd| {
            // SAFETY: the descriptor is open, and `AsyncFd` owns it until it is dropped.
            unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
        });
        let identity = ProcessIdentity::of(child.id());
        match (watched, identity) {
            (Ok(pidfd), Some(identity)) => Ok(Self {
                child,
                pidfd,
                identity,
            }),
            (watched, _) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(watched
                    .err()
                    .unwrap_or_else(|| io::Error::other("/proc is not mounted")))
            }
        }
    }

    /// How to name the process in a file.
    pub fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    /// The child's standard output and error, each once, where `command` asked for a pipe.
    pub fn take_output(&mut self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        (
            self.child.stdout.take().map(OwnedFd::from),
            self.child.stderr.take().map(OwnedFd::from),
        )
    }

    /// Sends SIGKILL. A child that has ended already is no error.
    pub fn kill(&self) {
        let _ = pidfd::kill(self.pidfd.get_ref());
    }

    /// Waits for the end and reaps the child. May be given up and called again.
    ///
    /// # Errors
    /// What the system says; not expected.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            // A pidfd becomes readable when its process ends, and stays so.
            let mut ready = self.pidfd.readable().await?;
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ready.clear_ready();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            // After SIGKILL the end is a matter of microseconds, except in uninterruptible sleep.
            let _ = pidfd::wait(self.pidfd.get_ref(), std::time::Duration::from_secs(1));
            let _ = self.child.try_wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    fn command(program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    #[tokio::test]
    async fn a_childs_exit_is_its_own() {
        let spawner = Spawner::new().unwrap();
        let mut first = spawner
            .spawn(command("sh", &["-c", "exit 7"]), Vec::new())
            .await
            .unwrap();
        let mut second = spawner
            .spawn(command("sleep", &["60"]), Vec::new())
            .await
            .unwrap();
        assert_eq!(first.wait().await.unwrap().code(), Some(7));
        assert!(second.identity().is_alive());
        second.kill();
        assert_eq!(second.wait().await.unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(second.wait().await.unwrap().signal(), Some(libc::SIGKILL));
        assert!(
            spawner
                .spawn(command("/nonexistent", &[]), Vec::new())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_child_outlives_the_thread_that_asked_but_not_its_handle() {
        let spawner = Spawner::new().unwrap();
        let asker = spawner.clone();
        let runtime = tokio::runtime::Handle::current();
        let child = std::thread::spawn(move || {
            runtime
                .block_on(asker.spawn(command("sleep", &["60"]), Vec::new()))
                .unwrap()
        });
        let child = tokio::task::spawn_blocking(move || child.join())
            .await
            .unwrap()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let identity = child.identity();
        assert!(identity.is_alive());
        drop(child);
        assert!(!identity.is_alive());
    }

    #[tokio::test]
    async fn a_child_inherits_descriptor_3_and_no_other() {
        let spawner = Spawner::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inherited");
        std::fs::write(&path, "from 3").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        // SAFETY: the copy is a new descriptor, left open and inheritable on purpose until the process ends.
        let leak = unsafe { libc::dup(file.as_raw_fd()) };
        assert!(leak > 3);
        let script = format!("cat <&3; [ -e /proc/self/fd/{leak} ] && echo leaked; true");
        let mut listing = command("sh", &["-c", &script]);
        listing.stdout(Stdio::piped());
        let mut child = spawner.spawn(listing, vec![file.into()]).await.unwrap();
        let (stdout, _) = child.take_output();
        let mut output = String::new();
        tokio::net::unix::pipe::Receiver::from_owned_fd(stdout.unwrap())
            .unwrap()
            .read_to_string(&mut output)
            .await
            .unwrap();
        assert_eq!(output, "from 3");
        assert!(child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn several_descriptors_arrive_in_their_order() {
        let spawner = Spawner::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut files: Vec<OwnedFd> = (3..7)
            .map(|number| {
                let path = directory.path().join(number.to_string());
                std::fs::write(&path, format!("{number} ")).unwrap();
                std::fs::File::open(&path).unwrap().into()
            })
            .collect();
        // Their numbers fall where they are to rise.
        files.reverse();
        let mut listing = command("sh", &["-c", "cat <&3; cat <&4; cat <&5; cat <&6"]);
        listing.stdout(Stdio::piped());
        let mut child = spawner.spawn(listing, files).await.unwrap();
        let (stdout, _) = child.take_output();
        let mut output = String::new();
        tokio::net::unix::pipe::Receiver::from_owned_fd(stdout.unwrap())
            .unwrap()
            .read_to_string(&mut output)
            .await
            .unwrap();
        assert_eq!(output, "6 5 4 3 ");
        assert!(child.wait().await.unwrap().success());
    }
}
