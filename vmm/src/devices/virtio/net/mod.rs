//! virtio-net (virtio 1.2, 5.1): an Ethernet card on a tap of the host.
//!
//! [`tap`] is the host's side, [`config`] what the driver is told. Each pair of queues has a thread ([`pair`]) that carries packets both
//! ways ([`receive`], [`transmit`]), and a queue of the tap of its own. The kernel does what the features promise: checksums and the
//! cutting of large packets, by the header that stands before each packet in guest memory and at the tap alike. [`control`] says how
//! many pairs are used, [`link`] whether the tap is there.

mod config;
mod control;
mod counters;
mod link;
mod pair;
mod receive;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

pub use self::config::PAIRS_MAX;
use self::config::{F_CTRL_VQ, F_GUEST_CSUM, F_MQ, F_MRG_RXBUF, Facts, QUEUE_SIZE};
use self::control::Control;
use self::counters::Counters;
use self::link::{Link, Reporter};
use self::pair::Pair;
use self::receive::{Receiver, Taken};
pub use self::tap::{OpenError, Source};
use self::tap::{Port, Tap};
use self::transmit::Transmitter;
use super::worker::Worker;
use super::{Active, ActiveQueue, Device, Kind, StartError};

/// The device.
#[derive(Debug)]
pub struct Net {
    port: Arc<dyn Port>,
    facts: Facts,
    queue_sizes: Vec<u16>,
    link: Link,
    counters: Arc<Counters>,
    workers: Vec<Worker<()>>,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] OpenError),
    /// Randomness.
    #[error("cannot make up a MAC address; give one with mac=")]
    Mac(#[source] io::Error),
}

impl Net {
    /// A card with the address `mac`, or one that is made up, on a tap; idle.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn open(source: &Source, mac: Option<[u8; 6]>) -> Result<Self, CreateError> {
        let tap = Tap::open(source)?;
        let facts = Facts {
            mac: mac.map_or_else(random_mac, Ok).map_err(CreateError::Mac)?,
            mtu: tap.mtu(),
            // As many as were asked for, which is PAIRS_MAX at most.
            pairs: tap.queues().len() as u16,
            uso: tap.segments_udp(),
        };
        Ok(Net::new(Arc::new(tap), facts))
    }

    fn new(port: Arc<dyn Port>, facts: Facts) -> Self {
        let pairs = usize::from(facts.pairs);
        let control = usize::from(facts.features() & F_CTRL_VQ != 0);
        Net {
            port,
            facts,
            queue_sizes: vec![QUEUE_SIZE; 2 * pairs + control],
            link: Link::default(),
            counters: Arc::default(),
            workers: Vec::new(),
        }
    }

    /// Makes the tap what the driver expects, with nothing in it. One that is gone will be found out by whoever uses it first.
    fn prepare(&self, features: u64) -> Result<(), StartError> {
        let prepared = self
            .port
            .set_offloads(config::offloads(features))
            .and_then(|()| self.port.use_queues(1));
        match prepared {
            Err(source) if !tap::is_gone(&source) => Err(StartError::System {
                what: "prepare the tap",
                source,
            }),
            _ => {
                self.port.queues().iter().for_each(tap::drain);
                Ok(())
            }
        }
    }

    fn start_pair(
        &mut self,
        active: &Active,
        index: usize,
        (rx, tx): (ActiveQueue, ActiveQueue),
        link: Reporter,
    ) -> Result<(), StartError> {
        let (memory, fault) = (active.memory.clone(), active.fault.clone());
        let (port, counters) = (self.port.clone(), self.counters.clone());
        let taken = Taken {
            mergeable: active.features & F_MRG_RXBUF != 0,
            checksums: active.features & F_GUEST_CSUM != 0,
            longest: self.facts.longest(active.features),
        };
        let worker = Worker::spawn(&format!("virtio-net-{index}"), move |events| {
            let pair = Pair {
                index,
                port,
                link,
                rx: Receiver::new(&memory, rx, taken, counters.clone()),
                tx: Transmitter::new(&memory, tx, counters),
            };
            if let Err(broken) = pair.run(events) {
                fault.raise(&broken);
            }
        })?;
        self.workers.push(worker);
        Ok(())
    }

    fn start_control(
        &mut self,
        active: &Active,
        pairs: usize,
        queue: ActiveQueue,
    ) -> Result<(), StartError> {
        let (memory, fault) = (active.memory.clone(), active.fault.clone());
        let control = Control {
            port: self.port.clone(),
            pairs,
        };
        let worker = Worker::spawn("virtio-net-ctl", move |events| {
            queue.work(&memory, events, &fault, |chain| {
                control.serve(&memory, chain)
            });
        })?;
        self.workers.push(worker);
        Ok(())
    }

    fn start_all(&mut self, mut active: Active) -> Result<(), StartError> {
        let took = |feature| active.features & feature != 0;
        let (has_control, several) = (took(F_CTRL_VQ), took(F_MQ));
        // Without VIRTIO_NET_F_MQ there is one pair, and the control queue is the one behind it (5.1.2).
        let most = if several { self.facts.pairs.into() } else { 1 };
        let mut pairs = vec![(active.take_queue(0)?, active.take_queue(1)?)];
        for index in 1..most {
            let (rx, tx) = (
                active.take_queue(2 * index),
                active.take_queue(2 * index + 1),
            );
            let (Ok(rx), Ok(tx)) = (rx, tx) else { break };
            pairs.push((rx, tx));
        }
        let control = active.take_queue(2 * most).ok().filter(|_| has_control);
        self.prepare(active.features)?;
        if let Some(queue) = control {
            self.start_control(&active, pairs.len(), queue)?;
        }
        let link = Reporter::new(
            self.link.clone(),
            self.port.name(),
            active.config_changed.clone(),
        );
        for (index, queues) in pairs.into_iter().enumerate() {
            self.start_pair(&active, index, queues, link.clone())?;
        }
        Ok(())
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        self.facts.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.facts.space(self.link.is_up()))
    }

    fn config_generation(&self) -> u8 {
        self.link.generation()
    }

    fn start(&mut self, active: Active) -> Result<(), StartError> {
        self.stop();
        let started = self.start_all(active);
        if started.is_err() {
            self.stop();
        }
        started
    }

    fn stop(&mut self) {
        self.workers.iter().for_each(Worker::tell_to_stop);
        self.workers.clear();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.list()
    }
}

/// An address that nobody else has, in all likelihood: of one station, and administered locally.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    let [first, ..] = &mut mac;
    *first = *first & !1 | 2;
    Ok(mac)
}
