//! virtio-net (virtio 1.2, 5.1): an Ethernet card on a tap of the host.
//!
//! [`tap`] is the host's side, [`config`] what the driver is told. Each pair of queues has a thread ([`pair`]) that carries packets both
//! ways ([`receive`], [`transmit`]), and a queue of the tap of its own. The kernel does what the features promise: checksums and the
//! cutting of large packets, by the header that stands before each packet in guest memory and at the tap alike. [`control`] says how
//! many pairs are used, [`link`] whether the tap is there. Where the host has vhost-net, its kernel does what the pairs' threads would
//! ([`vhost`]), and one thread looks out.

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
mod vhost;

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
pub use self::vhost::Vhost;
use self::vhost::{Carrier, Watch};
use vmm_sys_util::eventfd::EventFd;

use super::worker::Worker;
use super::{Active, ActiveQueue, Device, Kind, StartError};

/// A pair of queues: for receiving and for transmitting.
type Queues = (ActiveQueue, ActiveQueue);

/// The device.
#[derive(Debug)]
pub struct Net {
    port: Arc<dyn Port>,
    facts: Facts,
    /// What is to be tried, or must be, or not.
    vhost: Vhost,
    /// How many pairs the kernel carries now.
    carried: usize,
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
    /// No vhost-net, where there must be one.
    #[error(
        "cannot use /dev/vhost-net: load it with `modprobe vhost_net` and allow this user to use it, or write vhost=off"
    )]
    Vhost(#[source] io::Error),
}

impl Net {
    /// A card with the address `mac`, or one that is made up, on a tap, with vhost-net or without; idle.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn open(source: &Source, mac: Option<[u8; 6]>, vhost: Vhost) -> Result<Self, CreateError> {
        let vhost = if vhost != Vhost::Off
            && let Err(error) = vhost::probe()
        {
            if vhost == Vhost::On {
                return Err(CreateError::Vhost(error));
            }
            log::debug!("virtio-net: there is no vhost-net here: {error}");
            Vhost::Off
        } else {
            vhost
        };
        let tap = Tap::open(source)?;
        let facts = Facts {
            mac: mac.map_or_else(random_mac, Ok).map_err(CreateError::Mac)?,
            mtu: tap.mtu(),
            // As many as were asked for, which is PAIRS_MAX at most.
            pairs: tap.queues().len() as u16,
            uso: tap.segments_udp(),
        };
        Ok(Net::new(Arc::new(tap), facts, vhost))
    }

    fn new(port: Arc<dyn Port>, facts: Facts, vhost: Vhost) -> Self {
        let pairs = usize::from(facts.pairs);
        let control = usize::from(facts.features() & F_CTRL_VQ != 0);
        Net {
            port,
            facts,
            vhost,
            carried: 0,
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

    /// Hands all pairs over to the kernel; gives them back when it does not take them, and need not.
    fn start_kernel(
        &mut self,
        active: &Active,
        pairs: Vec<Queues>,
        link: &Reporter,
    ) -> Result<Vec<Queues>, StartError> {
        if self.vhost == Vhost::Off || !self.link.is_up() {
            return Ok(pairs);
        }
        let broken = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
            StartError::System {
                what: "create an eventfd",
                source,
            }
        })?;
        let carriers = pairs
            .iter()
            .zip(self.port.queues())
            .map(|((rx, tx), tap)| {
                Carrier::start(&active.memory, active.features, tap, [rx, tx], &broken)
            })
            .collect::<Result<Vec<_>, _>>();
        let carriers = match carriers {
            Ok(carriers) => carriers,
            Err(error) if self.vhost == Vhost::Auto => {
                log::warn!("virtio-net: going on without vhost-net: {error}");
                return Ok(pairs);
            }
            Err(error) => return Err(error),
        };
        self.carried = carriers.len();
        let watch = Watch {
            carriers,
            transmit: pairs.into_iter().map(|(_, tx)| tx).collect(),
            memory: active.memory.clone(),
            counters: self.counters.clone(),
            port: self.port.clone(),
            link: link.clone(),
            broken,
            fault: active.fault.clone(),
        };
        let worker = Worker::spawn("virtio-net", move |events| watch.run(events))?;
        self.workers.push(worker);
        Ok(Vec::new())
    }

    fn start_pair(
        &mut self,
        active: &Active,
        index: usize,
        (rx, tx): Queues,
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
        let rest = self.start_kernel(&active, pairs, &link)?;
        for (index, queues) in rest.into_iter().enumerate() {
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
        self.carried = 0;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.counters.list();
        // What the kernel carries it counts at the tap.
        counters.push(("vhost_pairs", self.carried as u64));
        counters
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
