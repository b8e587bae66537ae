//! The VM of a container: a process of its own, forked while there is one thread, that ends with this one.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, PipeReader};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail};
use orlop_proto::agent::CONTROL_PORT;
use orlop_proto::agent::v1::ShutdownRequest;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::connect;
use tonic::transport::Channel;

/// How long a guest may take to power itself off.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The VMM's process.
pub struct Vm {
    process: OwnedFd,
    /// Ends with it, with its last line.
    said: Option<JoinHandle<String>>,
    vsock: PathBuf,
    /// Where the agent says that it is ready.
    ready: UnixListener,
}

impl Vm {
    /// Forks; `vmm` is run in the child, which ends with its exit status. To be called while there is one thread.
    ///
    /// # Errors
    /// When the system gives no process, pipe or socket.
    pub fn fork(vsock: &Path, vmm: impl FnOnce() -> ExitCode) -> anyhow::Result<Self> {
        let (said, say) = io::pipe().context("cannot make a pipe")?;
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
                    libc::dup2(null.as_raw_fd(), 1);
                    libc::dup2(say.as_raw_fd(), 2);
                }
                drop((null, say, said, ready));
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
        drop(say);
        let listener = thread::Builder::new()
            .name("vmm-stderr".into())
            .spawn(move || last_line(said))
            .context("cannot start a thread")?;
        Ok(Self {
            // SAFETY: the descriptor is new, and nobody else's.
            process: unsafe { OwnedFd::from_raw_fd(fd) },
            said: Some(listener),
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

    /// The last line that the VMM, which has ended, has said.
    fn last_words(&mut self) -> String {
        let said = self.said.take().and_then(|said| said.join().ok());
        let last = said.filter(|line| !line.is_empty());
        let last = last.as_deref().unwrap_or("it says nothing");
        last.strip_prefix("orlop: ").unwrap_or(last).to_owned()
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

/// Reads to the end, so that whoever writes never waits, and keeps the last line.
fn last_line(from: PipeReader) -> String {
    let mut last = String::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty() {
            last = line.into_owned();
        }
    }
    last
}

/// Where the agent says that it is ready.
fn ready_socket(vsock: &Path) -> PathBuf {
    let mut name = vsock.as_os_str().to_owned();
    name.push(format!("_{CONTROL_PORT}"));
    name.into()
}
