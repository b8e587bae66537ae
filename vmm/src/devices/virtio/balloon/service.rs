//! The thread that serves a balloon's queues.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::GuestAddress;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::config::{F_PAGE_REPORTING, F_STATS_VQ};
use super::counters::Counters;
use super::pages::{self, LIST_MAX};
use super::statistics::{STATISTICS_MAX, Statistics};
use crate::devices::virtio::queue::{self, Chain};
use crate::devices::virtio::worker::{Events, Wake};
use crate::devices::virtio::{ActiveQueue, GuestMemory};
use crate::memory::{NotGivenBack, give_back};

/// What ends the device until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The driver misuses a queue.
    #[error("a queue is broken")]
    Queue(#[from] queue::Error),
    /// A list that is none.
    #[error("{0} bytes are no list of pages: it has 4 for each of them, and {LIST_MAX} at most")]
    List(usize),
    /// Pages that are not the guest's to give.
    #[error("pages outside of memory")]
    Pages(#[from] NotGivenBack),
    /// The thread cannot do its work.
    #[error("cannot wait for kicks")]
    Wait(#[source] std::io::Error),
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Pages that come into the balloon.
    Inflate,
    /// Pages that leave it.
    Deflate,
    /// What the guest tells of itself.
    Statistics,
    /// Pages that are free.
    Reports,
}

/// The queues that the driver uses. It may leave any of them alone.
pub struct Queues(Vec<Served>);

/// A queue at work.
struct Served {
    purpose: Purpose,
    active: ActiveQueue,
    /// Whether there may be something in it.
    due: bool,
    /// The chain with the newest statistics, which the driver gets back when new ones are wanted.
    held: Option<u16>,
}

impl Queues {
    /// Says what each queue is for, for a driver with these features.
    ///
    /// virtio 1.2, 5.5.2, counts inflateq, deflateq, statsq, free_page_vq, reporting_vq from 0 to 4. Linux leaves out those whose feature
    /// was not agreed upon and counts the others on; free_page_vq is not offered here. So what is enabled behind the queues before it is
    /// the one for reports, whatever its number.
    pub fn of(queues: Vec<Option<ActiveQueue>>, features: u64) -> Self {
        let took = |feature| features & feature != 0;
        let purpose = |index| match index {
            0 => Some(Purpose::Inflate),
            1 => Some(Purpose::Deflate),
            2 if took(F_STATS_VQ) => Some(Purpose::Statistics),
            _ => took(F_PAGE_REPORTING).then_some(Purpose::Reports),
        };
        let served = |(index, queue): (usize, Option<ActiveQueue>)| {
            Some(Served {
                purpose: purpose(index)?,
                active: queue?,
                // What was made available before the device started may have been announced to nobody.
                due: true,
                held: None,
            })
        };
        Queues(queues.into_iter().enumerate().filter_map(served).collect())
    }
}

/// What it works with.
pub struct Service {
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// Whether free pages must not change.
    pub keeps_free_pages: bool,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Where statistics go.
    pub statistics: Arc<Statistics>,
    /// Signalled when new statistics are wanted.
    pub asked: EventFd,
}

/// The token of [`Service::asked`]; a queue's is its place.
const ASKED: u64 = 1 << 32;

impl Service {
    /// Serves until the device is stopped.
    ///
    /// # Errors
    /// What the guest got wrong.
    pub fn run(&self, Queues(mut queues): Queues, events: &mut Events) -> Result<(), Broken> {
        for (token, served) in (0..).zip(&queues) {
            let kick = &served.active.kick;
            events.add_signal(kick, token).map_err(Broken::Wait)?;
        }
        events
            .add(&self.asked, EventSet::IN, ASKED)
            .map_err(Broken::Wait)?;
        loop {
            let mut more = false;
            for served in queues.iter_mut().filter(|served| served.due) {
                served.due = self.serve(served)?;
                more |= served.due;
            }
            for wake in events.wait(if more { 0 } else { -1 }) {
                match wake {
                    Wake::Stop => return Ok(()),
                    Wake::Ready(ASKED, _) => {
                        // It is non-blocking, and has nothing to say but that it happened.
                        let _ = self.asked.read();
                        for served in &mut queues {
                            self.give_statistics_back(served)?;
                        }
                    }
                    Wake::Ready(token, _) => {
                        let at = usize::try_from(token).unwrap_or(usize::MAX);
                        if let Some(served) = queues.get_mut(at) {
                            served.due = true;
                        }
                    }
                }
            }
        }
    }

    /// Serves a round of what is available; `true` if more is.
    fn serve(&self, served: &mut Served) -> Result<bool, Broken> {
        let (memory, active) = (&*self.memory, &mut served.active);
        match served.purpose {
            Purpose::Inflate => active.serve(memory, |chain| self.inflate(chain)),
            Purpose::Deflate => active.serve(memory, |chain| self.deflate(chain)),
            Purpose::Reports => active.serve(memory, |chain| self.report(chain)),
            Purpose::Statistics => self.take_statistics(served),
        }
    }

    /// 5.5.6.1: pages that the guest does not use until it has them back.
    fn inflate(&self, chain: &Chain) -> Result<u32, Broken> {
        for run in pages::read(&self.memory, chain)? {
            self.give(run.start(), run.bytes())?;
            self.counters.inflated(run.bytes());
        }
        Ok(0)
    }

    /// The guest has them back. There is nothing to be done: they are had when they are touched.
    fn deflate(&self, chain: &Chain) -> Result<u32, Broken> {
        for run in pages::read(&self.memory, chain)? {
            self.counters.deflated(run.bytes());
        }
        Ok(0)
    }

    /// 5.5.6.7: the buffers of the chain are free pages, which the guest uses no earlier than it has the chain back.
    fn report(&self, chain: &Chain) -> Result<u32, Broken> {
        self.counters.reports.fetch_add(1, Ordering::Relaxed);
        if !self.keeps_free_pages {
            for free in chain.writable() {
                self.give(free.addr, free.len.into())?;
            }
        }
        Ok(0)
    }

    /// Gives pages back. When the host refuses, the guest is none the worse for it.
    fn give(&self, start: GuestAddress, len: u64) -> Result<(), NotGivenBack> {
        match give_back(&self.memory, start, len) {
            Ok(bytes) => {
                self.counters.returned.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(NotGivenBack::Host { len, source }) => {
                log::warn!("virtio-balloon: the host did not take back {len} bytes: {source}");
                Ok(())
            }
            Err(outside) => Err(outside),
        }
    }

    /// 5.5.6.3: the driver leaves one chain here, which says what there was to say when it was made available. One is held at a time, and
    /// a driver that brings another one has the first back.
    fn take_statistics(&self, served: &mut Served) -> Result<bool, Broken> {
        let (memory, size) = (&*self.memory, served.active.queue.size());
        served.active.queue.disable_kicks(memory)?;
        for _ in 0..size {
            let Some(chain) = served.active.queue.pop(memory)? else {
                if served.active.queue.enable_kicks(memory)? {
                    continue;
                }
                return Ok(false);
            };
            let mut bytes = vec![0; chain.readable_len().min(STATISTICS_MAX)];
            chain.read_at(memory, 0, &mut bytes)?;
            self.statistics.take(&bytes);
            self.give_statistics_back(served)?;
            served.held = Some(chain.head());
        }
        Ok(true)
    }

    /// The driver gets the chain back that is held, and makes one with new statistics available.
    fn give_statistics_back(&self, served: &mut Served) -> Result<(), Broken> {
        if let Some(head) = served.held.take() {
            let active = &mut served.active;
            active.queue.complete(&self.memory, head, 0)?;
            if active.queue.needs_interrupt(&self.memory)? {
                active.interrupt.trigger();
            }
        }
        Ok(())
    }
}
