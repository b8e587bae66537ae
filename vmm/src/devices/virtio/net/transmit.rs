//! Packets from the guest to the tap: written straight from the driver's buffers, header and all (virtio 1.2, 5.1.6.2).
//!
//! The kernel copies a packet once and checks its own copy, so a guest that changes it meanwhile gains nothing. What the tap refuses
//! is dropped and counted, as on any network; what no packet can look like is the guest's fault.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::config::{HEADER, PACKET_MAX};
use super::counters::Counters;
use super::link::Reporter;
use super::pair::{Broken, Wait};
use super::tap;
use crate::devices::virtio::queue::{self, Chain};
use crate::devices::virtio::{ActiveQueue, GuestMemory, guest_io};

/// The transmit queue of a pair.
pub struct Transmitter<'m> {
    memory: &'m GuestMemory,
    queue: ActiveQueue,
    /// Taken, but not by the tap yet.
    held: Option<Chain>,
    counters: Arc<Counters>,
}

/// What became of a packet.
enum Fate {
    /// The driver gets its buffers back.
    Done,
    /// The tap takes no more for now.
    Later,
}

impl<'m> Transmitter<'m> {
    /// A transmitter that has taken nothing yet.
    pub fn new(memory: &'m GuestMemory, queue: ActiveQueue, counters: Arc<Counters>) -> Self {
        Transmitter {
            memory,
            queue,
            held: None,
            counters,
        }
    }

    /// The queue's events.
    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Sends packets, at most a queue's length of them; says what to wait for before the next round.
    ///
    /// # Errors
    /// What the guest got wrong.
    pub fn round(&mut self, tap: &File, link: &Reporter) -> Result<Wait, Broken> {
        let mut wait = Wait::Nothing;
        self.queue.queue.disable_kicks(self.memory)?;
        for _ in 0..self.queue.queue.size() {
            let next = match self.held.take() {
                None => self.queue.queue.pop(self.memory)?,
                held => held,
            };
            let Some(chain) = next else {
                if self.queue.queue.enable_kicks(self.memory)? {
                    continue;
                }
                wait = Wait::Kick;
                break;
            };
            match self.send(&chain, tap, link)? {
                Fate::Done => self.queue.queue.complete(self.memory, chain.head(), 0)?,
                Fate::Later => {
                    self.held = Some(chain);
                    wait = Wait::Tap;
                    break;
                }
            }
        }
        if self.queue.queue.needs_interrupt(self.memory)? {
            self.queue.interrupt.trigger();
        }
        Ok(wait)
    }

    fn send(&self, chain: &Chain, tap: &File, link: &Reporter) -> Result<Fate, Broken> {
        let len = chain.readable_len();
        if len < HEADER {
            return Err(Broken::Queue(queue::Error::Short {
                need: HEADER,
                have: len,
            }));
        }
        if len > PACKET_MAX || !link.is_up() {
            self.counters.tx.dropped();
            return Ok(Fate::Done);
        }
        let slices = chain.readable_slices(self.memory, 0, len)?;
        match guest_io::write_packet(tap, &slices) {
            Ok(_) => self.counters.tx.passed(len - HEADER),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Fate::Later),
            Err(error) => {
                // A bad header, no frame, an interface that is down: nobody waits for a packet that is lost.
                self.counters.tx.dropped();
                if tap::is_gone(&error) {
                    link.down();
                }
            }
        }
        Ok(Fate::Done)
    }
}
