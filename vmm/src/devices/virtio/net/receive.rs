//! Packets from the tap to the guest: read straight into the buffers that the driver has made available.
//!
//! How long a packet is shows only when it has been read. So the kernel is given as much room as the longest may need, as far as the
//! driver offers it, and behind that a buffer of our own: what lands there goes to the guest by a copy as soon as there is room.
//! Nothing is read before the driver has offered anything; until then packets wait in the tap, which throws away what is too much.
//!
//! With mergeable buffers a packet goes over as many chains as it takes, which the driver gets all at once; without them it goes into
//! one chain or nowhere (virtio 1.2, 5.1.6.4).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::config::{HEADER, PACKET_MAX};
use super::counters::Counters;
use super::link::Reporter;
use super::pair::{Broken, Wait};
use super::tap;
use crate::devices::virtio::queue::{self, Chain};
use crate::devices::virtio::{ActiveQueue, GuestMemory, guest_io};

/// Where `num_buffers` is in the header (5.1.6).
const NUM_BUFFERS: usize = 10;
/// As many pieces of guest memory as make room enough, so that a driver that offers single bytes stays below what one system call takes.
const PIECES_ENOUGH: usize = 256;

/// The receive queue of a pair.
pub struct Receiver<'m> {
    memory: &'m GuestMemory,
    queue: ActiveQueue,
    features: Taken,
    /// What the driver has made available, and no packet is in yet.
    ready: VecDeque<Room<'m>>,
    /// A packet that needs more room than there was.
    begun: Option<Begun<'m>>,
    /// Takes what does not fit into `ready`; one byte longer than the longest packet, so that none is cut off unseen.
    spill: Vec<u8>,
    /// Whether the driver is asked to kick.
    kicks: bool,
    counters: Arc<Counters>,
}

/// What matters here of what the driver took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// VIRTIO_NET_F_MRG_RXBUF.
    pub mergeable: bool,
    /// VIRTIO_NET_F_GUEST_CSUM; without it the header has no flags (5.1.6.4.1).
    pub checksums: bool,
    /// How long the longest packet is.
    pub longest: usize,
}

/// A chain to be filled.
struct Room<'m> {
    chain: Chain,
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

/// A packet that has been read, and is not wholly in guest memory.
struct Begun<'m> {
    /// The chains that are filled, and how far.
    filled: Vec<(Room<'m>, usize)>,
    /// How much of the spill has been copied, and how much there is.
    copied: usize,
    spilled: usize,
}

impl<'m> Receiver<'m> {
    /// A receiver that has taken nothing yet.
    pub fn new(
        memory: &'m GuestMemory,
        queue: ActiveQueue,
        features: Taken,
        counters: Arc<Counters>,
    ) -> Self {
        Receiver {
            memory,
            queue,
            features,
            ready: VecDeque::new(),
            begun: None,
            spill: vec![0; PACKET_MAX + 1],
            kicks: true,
            counters,
        }
    }

    /// The queue's events.
    pub fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Delivers packets, at most a queue's length of them; says what to wait for before the next round.
    ///
    /// # Errors
    /// What the guest got wrong.
    pub fn round(&mut self, tap: &File, link: &Reporter) -> Result<Wait, Broken> {
        let mut wait = Wait::Nothing;
        for _ in 0..self.queue.queue.size() {
            if !self.make_room()? {
                wait = Wait::Kick;
                break;
            }
            if self.begun.is_some() {
                self.go_on()?;
                continue;
            }
            match self.read(tap) {
                Ok(len) => self.deliver(len)?,
                Err(error) => {
                    if tap::is_gone(&error) {
                        link.down();
                    } else if error.kind() != io::ErrorKind::WouldBlock {
                        // A packet that the tap could not hand over, and has thrown away.
                        self.counters.rx.dropped();
                    }
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

    /// Takes as many chains as the next packet may need. `false`: there is not one, and the driver has been asked to kick.
    fn make_room(&mut self) -> Result<bool, Broken> {
        // A hostile driver might take back what it has just announced, time and again.
        for _ in 0..=2 * self.queue.queue.size() {
            if self.has_room() {
                break;
            }
            if let Some(chain) = self.queue.queue.pop(self.memory)? {
                self.ready.push_back(Room::new(self.memory, chain)?);
                continue;
            }
            if !self.ready.is_empty() {
                break;
            }
            if self.queue.queue.enable_kicks(self.memory)? {
                self.kicks = true;
                continue;
            }
            self.kicks = true;
            self.give_up();
            if self.ready.is_empty() {
                return Ok(false);
            }
        }
        if self.kicks {
            self.queue.queue.disable_kicks(self.memory)?;
            self.kicks = false;
        }
        Ok(!self.ready.is_empty())
    }

    fn has_room(&self) -> bool {
        if !self.features.mergeable {
            return !self.ready.is_empty();
        }
        let len: usize = self.ready.iter().map(|room| room.len).sum();
        let pieces: usize = self.ready.iter().map(|room| room.slices.len()).sum();
        len >= self.features.longest || pieces >= PIECES_ENOUGH
    }

    /// A packet that is in all the chains that the driver can offer, and is longer still, will never have room.
    fn give_up(&mut self) {
        let all = usize::from(self.queue.queue.size());
        if let Some(begun) = self.begun.take_if(|begun| begun.filled.len() >= all) {
            self.counters.rx.dropped();
            self.ready
                .extend(begun.filled.into_iter().map(|(room, _)| room));
        }
    }

    /// Reads one packet into what is ready and the spill behind it.
    fn read(&mut self, tap: &File) -> io::Result<usize> {
        let usable = if self.features.mergeable {
            usize::MAX
        } else {
            1
        };
        let rooms = self.ready.iter().take(usable);
        let slices: Vec<_> = rooms.flat_map(|room| room.slices.iter().copied()).collect();
        guest_io::read_packet(tap, &slices, &mut self.spill)
    }

    /// Gives the driver a packet of `len` bytes that has been read.
    fn deliver(&mut self, len: usize) -> Result<(), Broken> {
        let mut filled = Vec::new();
        let mut left = len;
        while left > 0
            && (self.features.mergeable || filled.is_empty())
            && let Some(room) = self.ready.pop_front()
        {
            let part = room.len.min(left);
            left -= part;
            filled.push((room, part));
        }
        // The kernel reads a packet at once, and what is too long was cut off.
        let is_packet = (HEADER..=PACKET_MAX).contains(&len);
        if is_packet && left == 0 {
            return self.finish(filled);
        }
        if is_packet && self.features.mergeable {
            self.begun = Some(Begun {
                filled,
                copied: 0,
                spilled: left,
            });
            return Ok(());
        }
        self.counters.rx.dropped();
        for (room, _) in filled.into_iter().rev() {
            self.ready.push_front(room);
        }
        Ok(())
    }

    /// Copies on what was spilled.
    fn go_on(&mut self) -> Result<(), Broken> {
        let Some(mut begun) = self.begun.take() else {
            return Ok(());
        };
        while let Some(rest) = self.spill.get(begun.copied..begun.spilled)
            && !rest.is_empty()
            && let Some(room) = self.ready.pop_front()
        {
            let part = rest.get(..room.len).unwrap_or(rest);
            room.chain.write_at(self.memory, 0, part)?;
            begun.copied += part.len();
            let part = part.len();
            begun.filled.push((room, part));
        }
        if begun.copied == begun.spilled {
            return self.finish(begun.filled);
        }
        self.begun = Some(begun);
        Ok(())
    }

    /// Gives filled chains back to the driver, as one packet.
    fn finish(&mut self, filled: Vec<(Room<'m>, usize)>) -> Result<(), Broken> {
        if let Some((first, _)) = filled.first() {
            // No more than the queue has.
            let count = filled.len() as u16;
            let count = count.to_le_bytes();
            first.chain.write_at(self.memory, NUM_BUFFERS, &count)?;
            if !self.features.checksums {
                first.chain.write_at(self.memory, 0, &[0])?;
            }
        }
        let len: usize = filled.iter().map(|(_, part)| part).sum();
        // A packet's part is less than 4 GiB.
        let used: Vec<_> = filled
            .iter()
            .map(|(room, part)| (room.chain.head(), *part as u32))
            .collect();
        self.queue.queue.complete_together(self.memory, &used)?;
        self.counters.rx.passed(len.saturating_sub(HEADER));
        Ok(())
    }
}

impl<'m> Room<'m> {
    /// Each chain must have room for a header (5.1.6.3.1); only a packet's first has one.
    fn new(memory: &'m GuestMemory, chain: Chain) -> Result<Self, Broken> {
        let len = chain.writable_len();
        if len < HEADER {
            return Err(Broken::Queue(queue::Error::Short {
                need: HEADER,
                have: len,
            }));
        }
        Ok(Room {
            slices: chain.writable_slices(memory, 0, len)?,
            chain,
            len,
        })
    }
}
