//! Standard input and output: FIFOs of containerd on this side, streams over vsock on the guest's.
//!
//! containerd names a FIFO for each stream (or nothing). A FIFO must never hold the shim up, neither at open nor later, so
//! all are opened non-blocking ([`fifo`]) and copied by tasks that wait for readiness ([`pump`]). Each process has
//! one [`Streams`], which knows when its output has been taken to the last byte.

mod fifo;
mod handshake;
mod pump;

use std::path::Path;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use orlop_proto::agent::v1::{Stdio as Wanted, Stream};
use tokio::net::unix::pipe::Sender;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use fifo::Hold;
pub use fifo::IoError;
use pump::Progress;

/// Output that has not moved for this long has ended, once its process has exited.
const IDLE: Duration = Duration::from_millis(300);

/// Where a process's streams go, as containerd names it: paths, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// Where input comes from.
    pub stdin: String,
    /// Where output goes.
    pub stdout: String,
    /// Where errors go; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

impl StdioPaths {
    /// Which streams the agent must offer.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
        }
    }
}

/// The streams of one process.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<JoinHandle<()>>,
    hold: Mutex<Held>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    close_stdin: watch::Sender<bool>,
    discard: watch::Sender<bool>,
    progress: Arc<Progress>,
}

/// What keeps standard input open.
#[derive(Debug, Default)]
enum Held {
    /// The process waits for its start: so far its writer does.
    Before(Hold),
    /// It was started.
    Since(#[expect(dead_code, reason = "it is there to be open")] Sender),
    /// There is none to keep open, or it has been closed.
    #[default]
    Nothing,
}

impl Streams {
    /// Opens what `paths` names, and the streams of the process (`container`, `exec`) behind `vsock`, and begins to copy.
    ///
    /// # Errors
    /// When a path cannot be opened, or the guest does not offer the stream.
    pub async fn open(
        vsock: &Path,
        container: &str,
        exec: &str,
        paths: &StdioPaths,
    ) -> Result<Self, IoError> {
        let wanted = paths.wanted();
        let mut streams = Self {
            stdin: None,
            hold: Mutex::default(),
            outputs: Mutex::default(),
            close_stdin: watch::Sender::new(false),
            discard: watch::Sender::new(false),
            progress: Arc::default(),
        };
        let outputs = [
            (wanted.stdout, Stream::Stdout, &paths.stdout),
            (wanted.stderr, Stream::Stderr, &paths.stderr),
        ];
        for (_, kind, path) in outputs.into_iter().filter(|(wanted, ..)| *wanted) {
            let sink = fifo::open_sink(path).await?;
            let stream = handshake::open(vsock, container, exec, kind).await?;
            let first = format!("{container} {exec}").trim_end().to_owned();
            let pump = pump::copy_out(
                stream,
                sink,
                streams.discard.subscribe(),
                streams.progress.clone(),
                first,
            );
            streams
                .outputs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(tokio::spawn(pump));
        }
        if wanted.stdin {
            let source = fifo::open_source(&paths.stdin, paths.terminal)?;
            if let Some(hold) = Hold::of(&source, &paths.stdin, paths.terminal)? {
                streams.hold = Mutex::new(Held::Before(hold));
            }
            let stream = handshake::open(vsock, container, exec, Stream::Stdin).await?;
            let pump = pump::copy_in(source, stream, streams.close_stdin.subscribe());
            streams.stdin = Some(tokio::spawn(pump));
        }
        Ok(streams)
    }

    /// The process starts: from now on its input ends when that is said, not when its writer goes.
    pub fn started(&self) {
        let mut held = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        *held = match std::mem::take(&mut *held) {
            Held::Before(hold) => hold.take().map_or(Held::Nothing, Held::Since),
            held => held,
        };
    }

    /// Ends standard input, behind what is in the FIFO.
    pub fn close_stdin(&self) {
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = Held::Nothing;
        self.close_stdin.send_replace(true);
    }

    /// How many times output has been taken by its reader, if some is waiting to be taken now.
    pub fn stalled_at(&self) -> Option<u64> {
        self.progress.stalled_at()
    }

    /// From now on drops what nobody reads.
    pub fn discard(&self) {
        self.discard.send_replace(true);
    }

    /// Waits until the output of a process that has exited has been taken, at most `limit`; what is left then is dropped.
    ///
    /// The end of the streams tells it. It may not come: a child that was left behind may keep them open. The agent tells of
    /// the exit behind the output, so when nothing moves any more there is nothing left of it; what the child writes is
    /// copied until the process is deleted.
    pub async fn drain(&self, limit: Duration) {
        let outputs =
            std::mem::take(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = tokio::time::Instant::now() + limit;
        let mut seen = self.progress.reads();
        while !outputs.iter().all(JoinHandle::is_finished) {
            tokio::select! {
                () = self.progress.ended() => continue,
                () = tokio::time::sleep(IDLE) => {}
            }
            let now = self.progress.reads();
            if self.progress.stalled_at().is_none() && now == seen {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                log::warn!("output that nobody took within {limit:?} is dropped");
                self.discard();
                break;
            }
            seen = now;
        }
        *self.outputs.lock().unwrap_or_else(PoisonError::into_inner) = outputs;
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let outputs = std::mem::take(
            self.outputs
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for task in outputs.iter().chain(&self.stdin) {
            task.abort();
        }
    }
}
