//! A process in a guest, and the user's streams: moved until it ends, with its terminal's size and the signals that we are sent.
//!
//! The streams are moved by threads of their own, since standard input cannot be waited for by the runtime.

use std::io::{self, IsTerminal as _, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use anyhow::Context as _;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::agent::v1::{
    ResizeRequest, SignalRequest, StartRequest, Stdio, Stream, WaitRequest,
};
use orlop_proto::streams;
use orlop_vmm::signals::Signals;
use orlop_vmm::terminal::{Raw, Size};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;

/// Which process, and what it gets of ours.
pub struct Session<'a> {
    /// The guest's vsock.
    pub vsock: &'a Path,
    /// The container.
    pub container: &'a str,
    /// The further process, or nothing for the container's own.
    pub exec: &'a str,
    /// Whether it gets our standard input.
    pub interactive: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// What happens to us, for the process to hear.
pub enum News {
    /// A signal.
    Signal(libc::c_int),
    /// Our terminal's size.
    Size(Size),
}

/// Hears of it. To be called while there is one thread.
///
/// # Errors
/// When the system gives no thread.
pub fn listen(tty: bool) -> io::Result<mpsc::Receiver<News>> {
    let (tell, news) = mpsc::channel(4);
    let signals = Signals::block(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT])?;
    if tty && io::stdin().is_terminal() {
        let tell = tell.clone();
        Size::follow(move |size| tell.blocking_send(News::Size(size)).is_ok())?;
    }
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Some(signal) = signals.wait() {
                if tell.blocking_send(News::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok(news)
}

impl Session<'_> {
    /// The streams that the process is to have.
    pub fn stdio(&self) -> Stdio {
        Stdio {
            stdin: self.interactive,
            stdout: true,
            stderr: !self.tty,
        }
    }

    /// Starts the process, which is created, and sees it to its end. Returns its exit status.
    ///
    /// # Errors
    /// When it cannot be started, or the guest ends before it.
    pub async fn attend(
        &self,
        mut agent: AgentClient<Channel>,
        news: mpsc::Receiver<News>,
    ) -> anyhow::Result<u8> {
        let raw = (self.tty && self.interactive && io::stdin().is_terminal())
            .then(Raw::enter)
            .transpose()?;
        if self.interactive {
            let stdin = self.open(Stream::Stdin).await?;
            // It may wait for a key for ever.
            thread::Builder::new().name("stdin".into()).spawn(move || {
                let _ = pass(io::stdin(), &stdin);
                let _ = stdin.shutdown(Shutdown::Write);
                // To close it now might cut off what is on its way.
                let _ = io::copy(&mut &stdin, &mut io::sink());
            })?;
        }
        let mut outputs = Vec::new();
        let stdout = self.open(Stream::Stdout).await?;
        outputs.push(thread::spawn(move || pass(stdout, io::stdout())));
        if !self.tty {
            let stderr = self.open(Stream::Stderr).await?;
            outputs.push(thread::spawn(move || pass(stderr, io::stderr())));
        }
        let start = StartRequest {
            container: self.container.into(),
            exec: self.exec.into(),
        };
        agent.start(start).await?;
        let wait = WaitRequest {
            container: self.container.into(),
            exec: self.exec.into(),
        };
        let mut waiter = agent.clone();
        let exit = tokio::select! {
            exit = waiter.wait(wait) => exit?.into_inner(),
            () = self.tell(agent, news) => anyhow::bail!("nobody listens for signals"),
        };
        for output in outputs {
            // A reader that has gone is no failure of the process.
            let _ = output.join();
        }
        drop(raw);
        u8::try_from(exit.exit_status).context("the agent says an exit status that is none")
    }

    async fn open(&self, stream: Stream) -> anyhow::Result<UnixStream> {
        let stream = streams::open(self.vsock, self.container, self.exec, stream).await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    async fn tell(&self, mut agent: AgentClient<Channel>, mut news: mpsc::Receiver<News>) {
        let (container, exec) = (self.container.to_owned(), self.exec.to_owned());
        while let Some(news) = news.recv().await {
            // A process that has ended meanwhile hears nothing.
            let _: Result<(), Status> = match news {
                News::Signal(signal) => {
                    let request = SignalRequest {
                        container: container.clone(),
                        exec: exec.clone(),
                        signal: signal.unsigned_abs(),
                        all: false,
                    };
                    agent.signal(request).await.map(drop)
                }
                News::Size(size) => {
                    let request = ResizeRequest {
                        container: container.clone(),
                        exec: exec.clone(),
                        width: size.columns.into(),
                        height: size.rows.into(),
                    };
                    agent.resize(request).await.map(drop)
                }
            };
        }
        std::future::pending().await
    }
}

/// Moves bytes as they come.
fn pass(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
}
