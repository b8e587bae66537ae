//! The thread that serves a console's queues.

use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use super::receive::Receive;
use super::transmit::{Pace, Transmit};
use super::{Counters, Line};
use crate::devices::virtio::queue;
use crate::devices::virtio::worker::{Events, Wake};
use crate::devices::virtio::{ActiveQueue, GuestMemory};

/// What ends the device until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The driver misuses a queue.
    #[error("a queue is broken")]
    Queue(#[from] queue::Error),
    /// 5.3.6.2.1: nothing in receiveq is for the device to read, nothing in transmitq for it to write.
    #[error("a buffer goes the wrong way: {0}")]
    Direction(&'static str),
    /// The thread cannot do its work.
    #[error("cannot wait for kicks and input")]
    Wait(#[source] std::io::Error),
}

/// What it works with.
pub struct Service {
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// The other end.
    pub line: Line,
    /// What is counted.
    pub counters: Arc<Counters>,
}

const INPUT_KICK: u64 = 0;
const OUTPUT_KICK: u64 = 1;
const TYPED: u64 = 2;

/// How long to wait before the reader of output is asked again whether there is room.
const READER_IS_SLOW: Duration = Duration::from_millis(5);

impl Service {
    /// Serves until the device is stopped.
    ///
    /// # Errors
    /// What the guest got wrong.
    pub fn run(
        &self,
        input: ActiveQueue,
        output: ActiveQueue,
        events: &mut Events,
    ) -> Result<(), Broken> {
        let typed = self.line.typed();
        for (fd, token) in [
            (&input.kick, INPUT_KICK),
            (&output.kick, OUTPUT_KICK),
            (typed, TYPED),
        ] {
            events.add(fd, EventSet::IN, token).map_err(Broken::Wait)?;
        }
        let mut receive = Receive::new(input);
        let mut transmit = Transmit::new(output);
        loop {
            // What was there before the device started may have been announced to nobody: both are looked at first.
            let more_input = receive.serve(self)?;
            let pace = transmit.serve(self)?;
            let patience = match (more_input, pace) {
                (true, _) | (_, Pace::More) => 0,
                (false, Pace::Full) => READER_IS_SLOW.as_millis() as i32,
                (false, Pace::Idle) => -1,
            };
            for wake in events.wait(patience) {
                // They are non-blocking, and have nothing to say but that it happened.
                let _ = match wake {
                    Wake::Stop => return Ok(()),
                    Wake::Ready(INPUT_KICK, _) => receive.kick().read(),
                    Wake::Ready(OUTPUT_KICK, _) => transmit.kick().read(),
                    Wake::Ready(..) => typed.read(),
                };
            }
        }
    }
}
