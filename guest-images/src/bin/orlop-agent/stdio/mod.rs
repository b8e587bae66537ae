//! The standard streams of containers' processes.
//!
//! Every process is given a pipe for each stream that it is to have, or a terminal for all of them. The host opens a connection
//! per stream ([`hello`]), which waits at the process's [`Slots`] until the process is there; then one task per stream moves the
//! bytes ([`pump`]). What nobody takes stays in the kernel's pipe, so a process that writes faster than the host reads is made
//! to wait, and the agent keeps no more than one buffer per stream.

pub mod fd;
pub mod hello;
pub mod pump;
pub mod terminal;

use std::sync::{Mutex, PoisonError};

use orlop_proto::agent::v1::{Stdio, Stream};
use tokio::sync::oneshot;

use crate::listen::Connection;

/// Where the host's connections to a process's streams arrive: at most one for each stream, ever.
#[derive(Default)]
pub struct Slots {
    stdin: Slot,
    stdout: Slot,
    stderr: Slot,
}

type Slot = Mutex<Option<oneshot::Sender<Connection>>>;

/// Where the connections come out; `None` for a stream that the process does not have.
#[derive(Default)]
pub struct Arrivals {
    /// Of stdin.
    pub stdin: Option<Arrival>,
    /// Of stdout, or of a terminal's output.
    pub stdout: Option<Arrival>,
    /// Of stderr. A terminal has none.
    pub stderr: Option<Arrival>,
}

/// A connection that may come.
pub type Arrival = oneshot::Receiver<Connection>;

impl Slots {
    /// Slots for the streams that are wanted.
    pub fn new(wanted: Stdio, terminal: bool) -> (Self, Arrivals) {
        let slot = |wanted: bool| {
            if !wanted {
                return (Slot::default(), None);
            }
            let (sender, receiver) = oneshot::channel();
            (Mutex::new(Some(sender)), Some(receiver))
        };
        let (stdin, stdin_arrival) = slot(wanted.stdin);
        let (stdout, stdout_arrival) = slot(wanted.stdout);
        let (stderr, stderr_arrival) = slot(wanted.stderr && !terminal);
        (
            Self {
                stdin,
                stdout,
                stderr,
            },
            Arrivals {
                stdin: stdin_arrival,
                stdout: stdout_arrival,
                stderr: stderr_arrival,
            },
        )
    }

    /// Takes the place of the connection to `stream`, if it is free. It stays taken, whatever becomes of the connection.
    pub fn take(&self, stream: Stream) -> Option<oneshot::Sender<Connection>> {
        let slot = match stream {
            Stream::Unspecified => return None,
            Stream::Stdin => &self.stdin,
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        slot.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .filter(|sender| !sender.is_closed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Stdio = Stdio {
        stdin: true,
        stdout: true,
        stderr: true,
    };

    #[test]
    fn a_stream_is_taken_once() {
        let (slots, _arrivals) = Slots::new(ALL, false);
        assert!(slots.take(Stream::Stdout).is_some());
        assert!(slots.take(Stream::Stdout).is_none());
        assert!(slots.take(Stream::Stderr).is_some());
        assert!(slots.take(Stream::Unspecified).is_none());
    }

    #[test]
    fn a_stream_that_is_not_there_cannot_be_taken() {
        let (slots, arrivals) = Slots::new(ALL, true);
        assert!(slots.take(Stream::Stderr).is_none());
        assert!(arrivals.stderr.is_none());
        drop(arrivals);
        assert!(slots.take(Stream::Stdout).is_none());
    }
}
