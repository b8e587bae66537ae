//! The thread of one queue: takes what the driver makes available, hands it to the engine in one batch, and gives back what has ended,
//! in whatever order that is.
//!
//! It waits for three things only: a kick, the engine, and the end. A slow disk keeps it from none of them. What is in flight is bounded
//! by the queue: a head that was not given back cannot be taken again.
//!
//! At the end the engine is drained before anything is let go of. After a reset nobody looks at the answers any more; after a fault the
//! driver still gets them, and then hears of the fault. The other queues of a disk with a fault go on until the driver resets it.

use std::io;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::disk::Disk;
use super::engine::{Engine, Job};
use super::patience::Patience;
use super::request::{Allowed, Request};
use crate::devices::virtio::worker::{Events, Wake};
use crate::devices::virtio::{ActiveQueue, Fault, GuestMemory, queue};

const KICK: u64 = 0;
const ENGINE: u64 = 1;

/// As many bytes as the driver is told of before more is done: to copy them takes longer than to tell, and the guest can go on with them meanwhile.
const LOT: usize = 256 << 10;
/// The driver is told of so many in any case.
const LOTS: usize = 4 << 20;

/// What the thread works with.
pub struct QueueWorker {
    /// The disk.
    pub disk: Arc<Disk>,
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// The queue.
    pub queue: ActiveQueue,
    /// What does its requests.
    pub engine: Engine,
    /// For further requests, before the driver is told.
    pub patience: Patience,
    /// For what the guest gets wrong.
    pub fault: Fault,
    /// What the driver may ask.
    pub allowed: Allowed,
    /// Whether every write must be durable when it is said to be done, because the driver will never ask for a flush
    /// (virtio 1.2, 5.2.6.2).
    pub write_through: bool,
}

/// What is done and given back, and the driver was not told of yet.
#[derive(Debug, Default)]
struct Untold {
    requests: u32,
    bytes: usize,
}

impl Untold {
    /// Whether a [`LOT`] is told before more is done, where so many requests wait: once half of all are done, so that the guest goes on with these while
    /// the others are, and as soon as it would wait for too much.
    fn suffice(&self, waiting: u16) -> bool {
        self.requests >= u32::from(waiting) || self.bytes >= LOTS
    }
}

/// What ends a worker before its time.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the request queue is broken")]
    Queue(#[from] queue::Error),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl QueueWorker {
    /// The life of the thread.
    pub fn run(mut self, events: &mut Events) {
        let ended = self.work(events);
        let mut done = Vec::new();
        if let Err(error) = self.engine.drain(&mut done) {
            log::error!("virtio-blk: requests in flight cannot be waited for: {error}");
        }
        if let Err(broken) = ended {
            // A used ring that is broken itself has been told already.
            let _ = self.give_back(&mut done).and_then(|()| self.interrupt());
            self.fault.raise(&broken);
        }
    }

    /// Works until it is told to stop.
    fn work(&mut self, events: &mut Events) -> Result<(), Broken> {
        let system = |what| move |source| Broken::System { what, source };
        events
            .add_signal(&self.queue.kick, KICK)
            .map_err(system("wait for kicks"))?;
        if let Some(results) = self.engine.results() {
            events
                .add(&results, EventSet::IN, ENGINE)
                .map_err(system("wait for the disk"))?;
        }
        let mut done = Vec::new();
        // First without a kick: buffers that were made available before the device started may have been announced to nobody.
        loop {
            let more = self.serve(&mut done)?;
            for wake in events.wait(if more { 0 } else { -1 }) {
                match wake {
                    Wake::Stop => return Ok(()),
                    // Either way there may be more to take, and results.
                    Wake::Ready(..) => {}
                }
            }
        }
    }

    /// Takes what is available and has it done, and again while there was some, for the driver need not kick for what it adds meanwhile. What has ended
    /// by then is told by one interrupt, or where that is a [`LOT`] by more ([`Untold::suffice`]). `true`: there is more, which no kick will announce.
    ///
    /// Where that has paid lately, it is looked for more ([`Patience`]). A driver cannot keep the thread here: it does as
    /// much as a queue of its size holds.
    fn serve(&mut self, done: &mut Vec<Job>) -> Result<bool, Broken> {
        self.queue.queue.disable_kicks(&self.memory)?;
        self.patience.begin(Instant::now());
        let mut room = self.queue.queue.size();
        let mut untold = Untold::default();
        let more = loop {
            let taken = self.take(room)?;
            if taken > 0 {
                self.patience.came(Instant::now());
            }
            let turned = self.engine.turn(done);
            for job in done.iter() {
                untold.requests += 1;
                untold.bytes += job.request().bytes();
            }
            self.give_back(done)?;
            if untold.bytes >= LOT && untold.suffice(self.queue.queue.waiting(&self.memory)?) {
                self.tell(&mut untold)?;
            }
            turned.map_err(|source| Broken::System {
                what: "hand requests to the disk",
                source,
            })?;
            room = room.saturating_sub(taken);
            if taken == 0 {
                if untold.requests > 0 && self.patience.looks(untold.requests, Instant::now()) {
                    // The guest may have no other processor to ask on.
                    thread::yield_now();
                    continue;
                }
                if !self.queue.queue.enable_kicks(&self.memory)? {
                    break false;
                }
                // What is available is the driver's word, which it may take back.
                room -= 1;
            }
            if room == 0 {
                break true;
            }
        };
        self.tell(&mut untold)?;
        Ok(more)
    }

    /// Takes the chains that are available, `most` of them at most and no more than a [`LOT`], and pushes them to the engine. Says how many.
    fn take(&mut self, most: u16) -> Result<u16, queue::Error> {
        let memory = &self.memory;
        let queue = &mut self.queue.queue;
        let (mut taken, mut bytes) = (0, 0);
        while taken < most && bytes < LOT {
            let Some(chain) = queue.pop(memory)? else {
                break;
            };
            taken += 1;
            match Request::parse(&chain, memory, &self.disk.image, self.allowed)? {
                Ok(request) => {
                    let job = Job::new(chain, request, memory, self.write_through)?;
                    self.engine.push(job);
                    bytes += request.bytes();
                }
                Err(status) => {
                    let written = self.disk.answer(memory, &chain, status, 0)?;
                    queue.complete(memory, chain.head(), written)?;
                }
            }
        }
        Ok(taken)
    }

    /// Answers jobs that have ended, and gives their chains back to the driver, which is not told yet.
    fn give_back(&mut self, done: &mut Vec<Job>) -> Result<(), queue::Error> {
        for job in done.drain(..) {
            let written = self.disk.finish(&self.memory, &job)?;
            let head = job.chain().head();
            self.queue.queue.complete(&self.memory, head, written)?;
        }
        Ok(())
    }

    /// Tells the driver of so many requests that were given back, and perhaps of some that could not be done.
    fn tell(&mut self, untold: &mut Untold) -> Result<(), queue::Error> {
        let Untold { requests, .. } = mem::take(untold);
        if requests > 0 {
            self.patience.told(requests);
        }
        self.interrupt()
    }

    /// Interrupts the driver for what was given back, if it wants to be.
    fn interrupt(&mut self) -> Result<(), queue::Error> {
        if self.queue.queue.needs_interrupt(&self.memory)? {
            self.queue.interrupt.trigger();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_hears_of_large_requests_when_half_are_done() {
        let untold = |requests, bytes| Untold { requests, bytes };
        for (requests, waiting, suffices) in
            [(1, 0, true), (1, 1, true), (1, 3, false), (2, 2, true)]
        {
            assert_eq!(untold(requests, LOT).suffice(waiting), suffices);
        }
        assert!(untold(1, LOTS).suffice(200));
    }
}
