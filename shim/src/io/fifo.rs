//! Opening containerd's side of a stream.
//!
//! - Output: FIFOs are opened for reading and writing. Opening then never waits for a reader, and a reader that goes
//!   away, as containerd does when it restarts, breaks nothing: output waits for the next one.
//! - Input without a terminal: opened for reading, so that the last writer's close is the end of input until the process starts. (`ctr run` does
//!   not always say CloseIO: when its own input ends before the task exists, closing the FIFO is all it does.) From then on the
//!   shim is a writer itself ([`Hold`]), as runc's is: a client may go and another come, and CloseIO is the end of input.
//! - Input with a terminal: opened for both. A terminal has no end of input, and a later client may attach again.
//!
//! A regular file may be given as `file:///path` for output.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The path cannot be opened.
    #[error("cannot open {} for the process's standard streams: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A scheme that Orlop does not know.
    #[error("{0:?} is not supported for standard streams: give a FIFO, or file:///PATH for output")]
    Scheme(String),
    /// The guest does not offer the stream.
    #[error("the guest does not offer {stream} of the process: {source}")]
    Guest {
        /// Which stream.
        stream: &'static str,
        /// What happened.
        source: io::Error,
    },
}

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// A FIFO, non-blocking.
    Fifo(Sender),
    /// A regular file.
    File(tokio::fs::File),
}

/// Opens where output goes.
pub async fn open_sink(uri: &str) -> Result<Sink, IoError> {
    match path_of(uri)? {
        Target::File(path) => tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .await
            .map(Sink::File)
            .map_err(failed(path)),
        Target::Fifo(path) => OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .map(Sink::Fifo)
            .map_err(failed(path)),
    }
}

/// Opens where input comes from.
pub fn open_source(uri: &str, terminal: bool) -> Result<Receiver, IoError> {
    match path_of(uri)? {
        Target::File(_) => Err(IoError::Scheme(uri.to_owned())),
        Target::Fifo(path) => OpenOptions::new()
            .read_write(terminal)
            .open_receiver(path)
            .map_err(failed(path)),
    }
}

/// What keeps a process's input from ending when its writer goes.
#[derive(Debug)]
pub struct Hold {
    path: PathBuf,
    reader: OwnedFd,
}

impl Hold {
    /// For the input that `source` is read from. None for a terminal's, which has no end.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn of(source: &Receiver, uri: &str, terminal: bool) -> Result<Option<Self>, IoError> {
        match path_of(uri)? {
            Target::Fifo(path) if !terminal => {
                let reader = source.as_fd().try_clone_to_owned();
                Ok(Some(Self {
                    path: path.into(),
                    reader: reader.map_err(failed(path))?,
                }))
            }
            _ => Ok(None),
        }
    }

    /// Becomes a writer, unless the last one has gone already: then the input has ended.
    pub fn take(self) -> Option<Sender> {
        let mut polled = [PollFd::new(self.reader.as_fd(), PollFlags::empty())];
        let asked = poll(&mut polled, PollTimeout::ZERO);
        let [state] = polled;
        let gone = state
            .revents()
            .is_some_and(|it| it.contains(PollFlags::POLLHUP));
        if asked.is_err() || gone {
            return None;
        }
        OpenOptions::new().open_sender(&self.path).ok()
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> IoError + '_ {
    |source| IoError::Open {
        path: path.into(),
        source,
    }
}

enum Target<'a> {
    Fifo(&'a Path),
    File(&'a Path),
}

fn path_of(uri: &str) -> Result<Target<'_>, IoError> {
    match uri.split_once("://") {
        None => Ok(Target::Fifo(Path::new(uri))),
        Some(("fifo", path)) => Ok(Target::Fifo(Path::new(path))),
        Some(("file", path)) => Ok(Target::File(Path::new(path))),
        Some(_) => Err(IoError::Scheme(uri.to_owned())),
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Sink::Fifo(fifo) => Pin::new(fifo).poll_write(context, bytes),
            Sink::File(file) => Pin::new(file).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Sink::Fifo(fifo) => Pin::new(fifo).poll_flush(context),
            Sink::File(file) => Pin::new(file).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Sink::Fifo(fifo) => Pin::new(fifo).poll_shutdown(context),
            Sink::File(file) => Pin::new(file).poll_shutdown(context),
        }
    }
}
