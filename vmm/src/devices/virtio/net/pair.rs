//! The thread of one pair of queues.
//!
//! One for both directions, since in most flows one of them waits for the other: data here, acknowledgements there. A guest that needs
//! more has more pairs.
//!
//! It waits for kicks only where it ran out of buffers, and for the tap only where that had nothing or took nothing. So neither a full
//! tap nor an empty ring keeps it busy, and each direction is served in turn, a queue's length at most.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::link::Reporter;
use super::receive::Receiver;
use super::tap::Port;
use super::transmit::Transmitter;
use crate::devices::virtio::queue;
use crate::devices::virtio::worker::{Events, Wake};

const RX_KICK: u64 = 0;
const TX_KICK: u64 = 1;
const TAP: u64 = 2;

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its next turn.
    Nothing,
    /// The driver.
    Kick,
    /// The tap.
    Tap,
}

/// What ends the thread before its time.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The guest.
    #[error("a queue is broken")]
    Queue(#[from] queue::Error),
    /// The host.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

/// What the thread works with.
pub struct Pair<'m> {
    /// Which pair it is.
    pub index: usize,
    /// The host's side.
    pub port: Arc<dyn Port>,
    /// Where it is told that the host's side is gone.
    pub link: Reporter,
    /// To the guest.
    pub rx: Receiver<'m>,
    /// From the guest.
    pub tx: Transmitter<'m>,
}

impl Pair<'_> {
    /// Works until it is told to stop.
    ///
    /// # Errors
    /// What the guest got wrong, or an epoll that fails.
    pub fn run(mut self, events: &mut Events) -> Result<(), Broken> {
        let port = self.port.clone();
        let Some(tap) = port.queues().get(self.index) else {
            return Ok(());
        };
        let system = |source| Broken::System {
            what: "wait for packets",
            source,
        };
        for (queue, token) in [(self.rx.queue(), RX_KICK), (self.tx.queue(), TX_KICK)] {
            events
                .add(&queue.kick, EventSet::IN, token)
                .map_err(system)?;
        }
        // Buffers that were made available before the device started may have been announced to nobody.
        let (mut rx, mut tx) = (Wait::Nothing, Wait::Nothing);
        let mut watched = None;
        loop {
            if rx == Wait::Nothing && self.link.is_up() {
                rx = self.rx.round(tap, &self.link)?;
            }
            if tx == Wait::Nothing {
                tx = self.tx.round(tap, &self.link)?;
            }
            let up = self.link.is_up();
            if !up && tx == Wait::Tap {
                // What the tap did not take goes nowhere now.
                tx = Wait::Nothing;
            }
            watch(events, tap, &mut watched, up.then_some((rx, tx))).map_err(system)?;
            let more = tx == Wait::Nothing || rx == Wait::Nothing && up;
            for wake in events.wait(if more { 0 } else { -1 }) {
                match wake {
                    Wake::Stop => return Ok(()),
                    Wake::Ready(RX_KICK, _) => kicked(&self.rx.queue().kick, &mut rx),
                    Wake::Ready(TX_KICK, _) => kicked(&self.tx.queue().kick, &mut tx),
                    Wake::Ready(_, set) => {
                        // The one thing that is wrong with a tap: it is gone.
                        if set.intersects(EventSet::ERROR | EventSet::HANG_UP) {
                            self.link.down();
                        }
                        if set.contains(EventSet::IN) && rx == Wait::Tap {
                            rx = Wait::Nothing;
                        }
                        if set.contains(EventSet::OUT) && tx == Wait::Tap {
                            tx = Wait::Nothing;
                        }
                    }
                }
            }
        }
    }
}

fn kicked(kick: &EventFd, wait: &mut Wait) {
    // It is non-blocking, and has nothing to say but that it happened.
    let _ = kick.read();
    if *wait == Wait::Kick {
        *wait = Wait::Nothing;
    }
}

/// Waits for what the directions need of the tap, and in any case for its end; for nothing when that has come.
fn watch(
    events: &mut Events,
    tap: &File,
    watched: &mut Option<EventSet>,
    waits: Option<(Wait, Wait)>,
) -> io::Result<()> {
    let wanted = waits.map(|(rx, tx)| {
        // A tap that is deleted says so to those who wait for something to read, and urgent packets it never has.
        let mut set = EventSet::PRIORITY;
        if rx == Wait::Tap {
            set |= EventSet::IN;
        }
        if tx == Wait::Tap {
            set |= EventSet::OUT;
        }
        set
    });
    match (*watched, wanted) {
        (before, now) if before == now => return Ok(()),
        (None, Some(set)) => events.add(tap, set, TAP)?,
        (Some(_), Some(set)) => events.modify(tap, set, TAP)?,
        (_, None) => events.remove(tap)?,
    }
    *watched = wanted;
    Ok(())
}
