//! virtio-balloon (virtio 1.2, 5.5): memory that the guest does not use goes back to the host.
//!
//! There are two ways. The driver *reports* what is free, unasked and a while after it became so; that is what makes a VM no larger than
//! what its guest uses. And there is the balloon: as much memory as the host wants to have, which the driver takes away from its guest
//! ([`Target`]) until the guest would run out of memory without it.
//!
//! [`config`] is what the driver is told, [`pages`] what it says, [`statistics`] what it tells of its guest; one thread serves all queues
//! ([`service`]).

mod config;
mod counters;
mod pages;
mod service;
mod statistics;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use self::config::Target;
use self::config::{F_PAGE_REPORTING, FEATURES, QUEUE_SIZES};
use self::counters::Counters;
use self::service::{Queues, Service};
use self::statistics::Statistics;
use super::worker::Worker;
use super::{Active, Device, Kind, StartError};
use vmm_sys_util::eventfd::EventFd;

/// The guest is asked for its statistics no more often than that.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The device.
#[derive(Debug)]
pub struct Balloon {
    target: Target,
    /// What is offered.
    features: u64,
    counters: Arc<Counters>,
    statistics: Arc<Statistics>,
    running: Option<Running>,
}

/// What there is while a driver works with it.
#[derive(Debug)]
struct Running {
    /// Signalled when new statistics are wanted.
    ask: EventFd,
    /// When they were wanted the last time.
    asked: Cell<Option<Instant>>,
    /// Held for what its end means.
    _worker: Worker<()>,
}

impl Balloon {
    /// A balloon that is to have `size` bytes, as [`Target::set`] says; idle.
    pub fn new(size: u64) -> Self {
        let target = Target::default();
        target.set(size);
        Balloon {
            target,
            features: FEATURES,
            counters: Arc::default(),
            statistics: Arc::default(),
            running: None,
        }
    }

    /// The same for memory of which nothing can be given back: the driver is not asked to report what is free.
    #[must_use]
    pub fn without_reports(self) -> Self {
        Balloon {
            features: FEATURES & !F_PAGE_REPORTING,
            ..self
        }
    }

    /// Says how large the balloon is to be, wherever the device is.
    pub fn target(&self) -> Target {
        self.target.clone()
    }

    /// Lets the guest send new statistics, unless it was just asked.
    fn ask(&self) {
        if let Some(running) = &self.running {
            let now = Instant::now();
            let just = |asked: Instant| now.duration_since(asked) < ASK_INTERVAL;
            if !running.asked.get().is_some_and(just) {
                running.asked.set(Some(now));
                // The only failure is a counter that is full, and then it is asked anyway.
                let _ = running.ask.write(1);
            }
        }
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.target.space())
    }

    fn config_generation(&self) -> u8 {
        self.target.generation()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.target.write(offset, data);
    }

    fn start(&mut self, active: Active) -> Result<(), StartError> {
        // What the driver wrote to the configuration space before stays: it does so first.
        self.running = None;
        let system = |source| StartError::System {
            what: "create an eventfd",
            source,
        };
        let ask = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(system)?;
        self.target.connect(active.config_changed);
        let service = Service {
            memory: active.memory,
            keeps_free_pages: self.target.keeps_free_pages(active.features),
            counters: self.counters.clone(),
            statistics: self.statistics.clone(),
            asked: ask.try_clone().map_err(system)?,
        };
        let (queues, fault) = (Queues::of(active.queues, active.features), active.fault);
        let worker = Worker::spawn("virtio-balloon", move |events| {
            if let Err(broken) = service.run(queues, events) {
                fault.raise(&broken);
            }
        })?;
        self.running = Some(Running {
            ask,
            asked: Cell::new(None),
            _worker: worker,
        });
        Ok(())
    }

    fn stop(&mut self) {
        self.running = None;
        self.target.disconnect();
        self.counters.forget_balloon();
        self.statistics.forget();
    }

    /// Of the balloon, of what was given back, and the newest statistics of the guest's own. To ask for these lets the guest send new ones,
    /// once a second at most, which the next call sees: a guest that nobody looks at is not woken.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.ask();
        let mut list = vec![
            ("target_bytes", self.target.get()),
            (
                "balloon_bytes",
                self.counters.balloon.load(Ordering::Relaxed),
            ),
            (
                "returned_bytes",
                self.counters.returned.load(Ordering::Relaxed),
            ),
            ("reports", self.counters.reports.load(Ordering::Relaxed)),
        ];
        list.extend(self.statistics.list());
        list
    }
}
