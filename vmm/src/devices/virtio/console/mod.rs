//! virtio-console (virtio 1.2, 5.3): a console that knows how large the terminal at its other end is. Linux calls it hvc0.
//!
//! There is one port and no control queue (VIRTIO_CONSOLE_F_MULTIPORT is not offered). What is at the other end is not the device's
//! business: it has a [`Line`] there. One thread serves both queues: [`receive`] gives the driver what is typed, [`transmit`] takes what
//! the guest writes.

mod line;
mod receive;
mod service;
#[cfg(test)]
mod tests;
mod transmit;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::line::Line;
use self::service::Service;
use super::worker::Worker;
use super::{Active, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, Kind, StartError};

/// VIRTIO_CONSOLE_F_SIZE: the configuration space has the terminal's size (5.3.3).
const F_SIZE: u64 = 1;
/// receiveq and transmitq (5.3.2).
const QUEUE_SIZES: [u16; 2] = [64; 2];

/// The device.
#[derive(Debug)]
pub struct Hvc {
    line: Line,
    counters: Arc<Counters>,
    worker: Option<Worker<()>>,
}

/// What went through it, in bytes.
#[derive(Debug, Default)]
struct Counters {
    input: AtomicU64,
    output: AtomicU64,
}

impl Hvc {
    /// The device at the end of `line`, idle.
    pub fn new(line: Line) -> Self {
        Hvc {
            line,
            counters: Arc::default(),
            worker: None,
        }
    }
}

impl Device for Hvc {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        F_SIZE | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.line.space().into())
    }

    fn config_generation(&self) -> u8 {
        self.line.generation()
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        let (input, output) = (active.take_queue(0)?, active.take_queue(1)?);
        let service = Service {
            memory: active.memory,
            line: self.line.clone(),
            counters: self.counters.clone(),
        };
        let fault = active.fault;
        self.worker = Some(Worker::spawn("virtio-console", move |events| {
            if let Err(broken) = service.run(input, output, events) {
                fault.raise(&broken);
            }
        })?);
        if active.features & F_SIZE != 0 {
            self.line.connect(active.config_changed);
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.worker = None;
        self.line.disconnect();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("input_bytes", self.counters.input.load(Ordering::Relaxed)),
            ("output_bytes", self.counters.output.load(Ordering::Relaxed)),
            ("dropped_bytes", self.line.output().dropped().count()),
        ]
    }
}
