//! The VM of a container: a process of its own, forked while there is one thread, that ends with this one.

use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use orlop_proto::agent::CONTROL_PORT;
use orlop_proto::agent::v1::ShutdownRequest;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::connect;
use tonic::transport::Channel;

use super::tail;

/// How long a guest may take to power itself off.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// How long a VM whose agent is gone may take to end, before it is said that it has not.
const ENDING: Duration = Duration::from_secs(2);

/// The VMM's process, to which nobody listens yet.
pub struct Forked {
    process: OwnedFd,
    /// What it says, and what the guest says on its console.
    pipes: [PipeReader; 2],
    vsock: PathBuf,
    ready: UnixListener,
}

/// The VMM's process.
pub struct Vm {
    process: OwnedFd,
    /// What it said, and what the guest said on its console, until both end.
    said: Option<[JoinHandle<Vec<String>>; 2]>,
    vsock: PathBuf,
    /// Where the agent says that it is ready.
    ready: UnixListener,
}

impl Forked {
    /// Listens to the VMM, by threads. They have the signals blocked that are blocked now, so that those go to whoever waits for them.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn listen(self) -> anyhow::Result<Vm> {
        let [said, shown] = self.pipes;
        let keep = |name, from| tail::keep(name, from).context("cannot start a thread");
        Ok(Vm {
            process: self.process,
            said: Some([keep("vmm-stderr", said)?, keep("console", shown)?]),
            vsock: self.vsock,
            ready: self.ready,
        })
    }
}

impl Vm {
    /// Forks; `vmm` is run in the child, whose standard output is to be the guest's console, and which ends with its exit status. To be called
    /// while there is one thread.
    ///
    /// # Errors
    /// When the system gives no process, pipe or socket.
    pub fn fork(vsock: &Path, vmm: impl FnOnce() -> ExitCode) -> anyhow::Result<Forked> {
        let pipe = || io::pipe().context("cannot make a pipe");
        let ((said, say), (shown, show)) = (pipe()?, pipe()?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        // It is there before the guest is.
        let place = ready_socket(vsock);
        let _ = fs::remove_file(&place);
        let ready = UnixListener::bind(&place)
            .and_then(|ready| ready.set_nonblocking(true).map(|()| ready))
            .with_context(|| format!("cannot listen on {}", place.display()))?;
        // SAFETY: no preconditions.
        let parent = unsafe { libc::getpid() };
        // SAFETY: this process has one thread, so the child may do anything.
        let child = match unsafe { libc::fork() } {
            -1 => {
                return Err(io::Error::last_os_error())
                    .context("cannot start a process for the VM");
            }
            0 => {
                // SAFETY: the descriptors are open; the signals of this terminal are not the VMM's, and it ends with its parent.
                unsafe {
                    libc::setsid();
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                    if libc::getppid() != parent {
                        libc::_exit(1);
                    }
                    libc::dup2(null.as_raw_fd(), 0);
                    libc::dup2(show.as_raw_fd(), 1);
                    libc::dup2(say.as_raw_fd(), 2);
                }
                drop((null, say, said, show, shown, ready));
                let status = i32::from(vmm() != ExitCode::SUCCESS);
                // Its parent may be gone.
                let _ = fs::remove_file(place);
                std::process::exit(status);
            }
            child => child,
        };
        // SAFETY: it is our child, which has not been waited for.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd
            .ok_or_else(io::Error::last_os_error)
            .context("cannot hold the VM's process")?;
        drop((say, show));
        Ok(Forked {
            // SAFETY: the descriptor is new, and nobody else's.
            process: unsafe { OwnedFd::from_raw_fd(fd) },
            pipes: [said, shown],
            vsock: vsock.to_owned(),
            ready,
        })
    }

    /// Waits until the agent of the guest serves.
    ///
    /// # Errors
    /// When it does not, in time or at all.
    pub async fn agent(&mut self, limit: Duration) -> anyhow::Result<AgentClient<Channel>> {
        let ready = tokio::net::UnixListener::from_std(self.ready.try_clone()?)?;
        let process = self.process.try_clone()?;
        // SAFETY: it owns the descriptor, which is open for as long as it lives.
        let end = unsafe { tokio::io::unix::AsyncFd::register(process) }?;
        let came = tokio::select! {
            accepted = ready.accept() => accepted.map(drop).map_err(anyhow::Error::from),
            _ = end.readable() => Err(anyhow::anyhow!("the VM did not start: {}", self.last_words())),
            () = tokio::time::sleep(limit) => Err(anyhow::anyhow!("the guest was not ready after {limit:?}")),
        };
        came?;
        Ok(AgentClient::new(
            connect::vsock(&self.vsock, CONTROL_PORT).await?,
        ))
    }

    /// Why the VM has ended, if it has or does so in a moment: for who has lost the agent.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn why_ended(&mut self) -> anyhow::Result<Option<String>> {
        let process = self.process.try_clone()?;
        // SAFETY: it owns the descriptor, which is open for as long as it lives.
        let end = unsafe { tokio::io::unix::AsyncFd::register(process) }?;
        let ended = tokio::time::timeout(ENDING, end.readable()).await.is_ok();
        Ok(ended.then(|| self.last_words()))
    }

    /// What the VMM, which has ended, has said in the end, and its guest.
    fn last_words(&mut self) -> String {
        let said = self.said.take().into_iter().flatten();
        let mut said = said.map(|lines| lines.join().unwrap_or_default());
        let (own, console) = (
            said.next().unwrap_or_default(),
            said.next().unwrap_or_default(),
        );
        let why = match own.last() {
            Some(line) => line.strip_prefix("orlop: ").unwrap_or(line),
            None => "the guest powered off",
        };
        if console.is_empty() {
            why.to_owned()
        } else {
            format!("{why}; last on its console: {}", console.join(" | "))
        }
    }

    /// Has the guest power itself off, and the VMM end in any case.
    ///
    /// # Errors
    /// When the VMM cannot be waited for.
    pub async fn end(self, agent: Option<AgentClient<Channel>>) -> anyhow::Result<()> {
        let process = self.process.try_clone()?;
        // SAFETY: it owns the descriptor, which is open for as long as it lives.
        let end = unsafe { tokio::io::unix::AsyncFd::register(process) }?;
        if let Some(mut agent) = agent {
            // The guest may be gone before it has answered.
            let asked = async {
                let _ = agent.shutdown(ShutdownRequest {}).await;
                let _ = end.readable().await;
            };
            let _ = tokio::time::timeout(SHUTDOWN, asked).await;
        }
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            if tokio::time::timeout(Duration::ZERO, end.readable())
                .await
                .is_ok()
            {
                break;
            }
            // SAFETY: the descriptor is a process's.
            unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    self.process.as_raw_fd(),
                    signal,
                    std::ptr::null::<libc::siginfo_t>(),
                    0,
                );
            }
            let _ = tokio::time::timeout(SHUTDOWN, end.readable()).await;
        }
        for path in [ready_socket(&self.vsock), self.vsock] {
            let _ = fs::remove_file(path);
        }
        if tokio::time::timeout(Duration::ZERO, end.readable())
            .await
            .is_err()
        {
            bail!("the VM's process does not end");
        }
        Ok(())
    }
}

/// Where the agent says that it is ready.
fn ready_socket(vsock: &Path) -> PathBuf {
    let mut name = vsock.as_os_str().to_owned();
    name.push(format!("_{CONTROL_PORT}"));
    name.into()
}
