//! transmitq: what the guest writes, on its way to whoever reads it (virtio 1.2, 5.3.6).
//!
//! Linux waits for each buffer with its processor spinning. So a buffer is kept until there is room for all of it, and a reader who is
//! there gets everything; but only so long: what nobody reads is dropped, as by a serial port.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::service::{Broken, Service};
use crate::devices::console::output::BACKLOG;
use crate::devices::virtio::{ActiveQueue, GuestMemory, queue::Chain};

/// How long output may wait for a reader who is slow. When one was slower than that, nothing waits until they read again.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is copied at once.
const PIECE: usize = 4096;

/// transmitq at work.
pub struct Transmit {
    active: ActiveQueue,
    sending: Option<Sending>,
    /// Since when there has been no room.
    full_since: Option<Instant>,
}

/// A chain of which a part is sent.
struct Sending {
    chain: Chain,
    sent: usize,
}

/// When to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// When the driver kicks.
    Idle,
    /// At once.
    More,
    /// When the reader has made room.
    Full,
}

impl Transmit {
    /// With nothing sent yet.
    pub fn new(active: ActiveQueue) -> Self {
        Transmit {
            active,
            sending: None,
            full_since: None,
        }
    }

    /// Signalled when there is something to send.
    pub fn kick(&self) -> &EventFd {
        &self.active.kick
    }

    /// Sends what there is: no more in one round than the reader's backlog holds, nor more chains than the queue does.
    ///
    /// # Errors
    /// What the guest got wrong.
    pub fn serve(&mut self, service: &Service) -> Result<Pace, Broken> {
        let memory = &*service.memory;
        self.active.queue.disable_kicks(memory)?;
        let mut budget = BACKLOG;
        let mut pace = Pace::More;
        for _ in 0..self.active.queue.size() {
            let Some(mut sending) = self.next(memory)? else {
                if self.active.queue.enable_kicks(memory)? {
                    continue;
                }
                pace = Pace::Idle;
                break;
            };
            let full = !self.send(service, &mut sending, &mut budget)?;
            if sending.sent < sending.chain.readable_len() {
                self.sending = Some(sending);
                pace = if full { Pace::Full } else { Pace::More };
                break;
            }
            let head = sending.chain.head();
            self.active.queue.complete(memory, head, 0)?;
        }
        if self.active.queue.needs_interrupt(memory)? {
            self.active.interrupt.trigger();
        }
        Ok(pace)
    }

    /// The chain that is begun, or the next.
    fn next(&mut self, memory: &GuestMemory) -> Result<Option<Sending>, Broken> {
        if let Some(sending) = self.sending.take() {
            return Ok(Some(sending));
        }
        let Some(chain) = self.active.queue.pop(memory)? else {
            return Ok(None);
        };
        if !chain.writable().is_empty() {
            return Err(Broken::Direction("transmitq has one to write"));
        }
        Ok(Some(Sending { chain, sent: 0 }))
    }

    /// Sends as much as there is room for, up to `budget`. `false`: there was no room, and the rest waits.
    fn send(
        &mut self,
        service: &Service,
        sending: &mut Sending,
        budget: &mut usize,
    ) -> Result<bool, Broken> {
        let output = service.line.output();
        let mut piece = [0; PIECE];
        while *budget > 0 {
            let left = sending.chain.readable_len() - sending.sent;
            let length = left.min(PIECE).min(*budget);
            let Some(piece) = piece.get_mut(..length).filter(|piece| !piece.is_empty()) else {
                break;
            };
            let memory = &service.memory;
            sending.chain.read_at(memory, sending.sent, piece)?;
            let taken = output.offer(piece);
            sending.sent += taken;
            *budget -= taken;
            service
                .counters
                .output
                .fetch_add(taken as u64, Ordering::Relaxed);
            if taken == length {
                self.full_since = None;
            } else if self.full_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                return Ok(false);
            } else {
                output.dropped().add(left - taken);
                sending.sent += left - taken;
            }
        }
        Ok(true)
    }
}
