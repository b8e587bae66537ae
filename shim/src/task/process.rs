//! A process, as containerd sees it: created, then running, then stopped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::io::{StdioPaths, Streams};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 and the signal's number for one that a signal ended.
    pub status: u32,
    /// When, by this machine's clock: the guest's is the guest's.
    pub at: SystemTime,
}

impl Exit {
    /// An end that comes now.
    pub fn now(status: u32) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }

    /// The time as protobuf has it.
    pub fn timestamp(&self) -> MessageField<Timestamp> {
        MessageField::some(Timestamp::from(self.at))
    }
}

/// The status of a process that SIGKILL ended, or that went with its VM.
pub const KILLED: u32 = 137;

/// Where a process is in its life. It only ever goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made, and waiting for its start.
    Created,
    /// Started.
    Running,
    /// Ended.
    Stopped(Exit),
}

/// A process.
pub struct Process {
    /// The exec's id; empty for a container's own process.
    pub exec: String,
    /// Where its streams go.
    pub stdio: StdioPaths,
    /// Held while the process is started, and while its end is made known: so that the events come in order.
    pub transition: AsyncMutex<()>,
    phase: watch::Sender<Phase>,
    streams: Mutex<Option<Arc<Streams>>>,
}

impl Process {
    /// A process that has been made.
    pub fn new(exec: &str, stdio: StdioPaths) -> Self {
        Self {
            exec: exec.to_owned(),
            stdio,
            transition: AsyncMutex::new(()),
            phase: watch::Sender::new(Phase::Created),
            streams: Mutex::default(),
        }
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match self.phase() {
            Phase::Stopped(exit) => Some(exit),
            Phase::Created | Phase::Running => None,
        }
    }

    /// It was started. One that has ended stays so.
    pub fn started(&self) {
        self.phase.send_if_modified(|phase| {
            let created = *phase == Phase::Created;
            if created {
                *phase = Phase::Running;
            }
            created
        });
    }

    /// It has ended. Answers whether that is news.
    pub fn stopped(&self, exit: Exit) -> bool {
        self.phase.send_if_modified(|phase| {
            let news = !matches!(phase, Phase::Stopped(_));
            if news {
                *phase = Phase::Stopped(exit);
            }
            news
        })
    }

    /// Waits for the start or the end, whichever comes first.
    pub async fn wait_started(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as the process.
        let _ = phase.wait_for(|phase| *phase != Phase::Created).await;
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Stopped(exit) = *phase.borrow_and_update() {
                return exit;
            }
            if phase.changed().await.is_err() {
                return Exit::now(KILLED);
            }
        }
    }

    /// Its streams, if it has any.
    pub fn streams(&self) -> Option<Arc<Streams>> {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gives it its streams, or takes them away.
    pub fn set_streams(&self, streams: Option<Arc<Streams>>) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = streams;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_life_goes_forward_only() {
        let process = Arc::new(Process::new("", StdioPaths::default()));
        let waiting = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        process.started();
        assert_eq!(process.phase(), Phase::Running);
        process.wait_started().await;
        let exit = Exit::now(7);
        assert!(process.stopped(exit));
        assert!(!process.stopped(Exit::now(8)), "the first end counts");
        process.started();
        assert_eq!(process.exit(), Some(exit));
        assert_eq!(waiting.await.unwrap(), exit);
        assert_eq!(process.wait().await, exit);
    }
}
