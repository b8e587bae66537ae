//! virtio-blk (virtio 1.2, 5.2): a disk on a raw image or a block device.
//!
//! [`image`] is the host's side, [`request`] what the driver asks, [`engine`] how it is done. One queue, one thread.

mod engine;
mod image;
mod request;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::engine::{Engine, Failure};
use self::image::Image;
pub use self::image::OpenError;
use self::request::{Request, Status};
use super::queue::{self, Chain};
use super::worker::Worker;
use super::{
    Active, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, GuestMemory, Kind, StartError,
};

/// VIRTIO_BLK_F_SEG_MAX: the driver is told how many buffers a request may have. Without it Linux uses one.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO: the disk cannot be written to.
const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE: the driver is told the block size.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH: the driver says when what it wrote must be durable.
const F_FLUSH: u64 = 1 << 9;

/// The queue's size.
const QUEUE_SIZE: u16 = 256;
/// As many buffers as a request may have: all but the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The block size that the driver is told.
const BLK_SIZE: u32 = 512;

/// The device.
#[derive(Debug)]
pub struct Blk {
    image: Arc<Image>,
    config: [u8; 24],
    counters: Arc<Counters>,
    worker: Option<Worker<()>>,
}

/// What it has done.
#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl Blk {
    /// A disk on the raw image or block device `path`; idle. Others cannot use it meanwhile, unless all only read.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, readonly: bool) -> Result<Self, OpenError> {
        let image = Image::open(path, readonly)?;
        Ok(Blk {
            config: config(image.sectors),
            image: Arc::new(image),
            counters: Arc::default(),
            worker: None,
        })
    }
}

/// struct virtio_blk_config up to blk_size (virtio 1.2, 5.2.4).
fn config(sectors: u64) -> [u8; 24] {
    let mut config = [0; 24];
    let size_max = [0; 4];
    let geometry = [0; 4];
    let fields = sectors
        .to_le_bytes()
        .into_iter()
        .chain(size_max)
        .chain(SEG_MAX.to_le_bytes())
        .chain(geometry)
        .chain(BLK_SIZE.to_le_bytes());
    for (place, byte) in config.iter_mut().zip(fields) {
        *place = byte;
    }
    config
}

impl Device for Blk {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let readonly = if self.image.readonly { F_RO } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX | readonly
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        let write_through = active.features & F_FLUSH == 0;
        let queue = active.take_queue(0)?;
        let mut disk = Disk {
            image: self.image.clone(),
            engine: Engine::new(self.image.clone(), write_through),
            counters: self.counters.clone(),
            complained: false,
        };
        self.worker = Some(Worker::spawn("virtio-blk", move |events| {
            let memory = &active.memory;
            queue.work(memory, events, &active.fault, |chain| {
                disk.serve(memory, chain)
            });
        })?);
        Ok(())
    }

    fn stop(&mut self) {
        self.worker = None;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        [
            ("reads", &counters.reads),
            ("read_bytes", &counters.read_bytes),
            ("writes", &counters.writes),
            ("written_bytes", &counters.written_bytes),
            ("flushes", &counters.flushes),
            ("errors", &counters.errors),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .into()
    }
}

/// What the worker has.
struct Disk {
    image: Arc<Image>,
    engine: Engine,
    counters: Arc<Counters>,
    complained: bool,
}

impl Disk {
    /// Does what one chain asks, and says how many bytes were written to it.
    fn serve(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<u32, queue::Error> {
        let (status, written) = match Request::parse(chain, memory, &self.image)? {
            Err(status) => (status, 0),
            Ok(request) => match self.engine.run(memory, chain, request) {
                Ok(written) => {
                    self.counters.count(request);
                    (Status::Ok, written)
                }
                Err(Failure::Queue(error)) => return Err(error),
                Err(Failure::Disk(error)) => {
                    // Once, so that a guest cannot fill the log; the counter says how often.
                    if !std::mem::replace(&mut self.complained, true) {
                        log::warn!("virtio-blk: {request:?} failed: {error}");
                    }
                    (Status::IoError, 0)
                }
            },
        };
        if status != Status::Ok {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        finish(chain, memory, status, written)
    }
}

/// Writes the status, which is the last byte, and says how many bytes were written without a gap from the first one on
/// (virtio 1.2, 2.7.8.2).
fn finish(
    chain: &Chain,
    memory: &GuestMemory,
    status: Status,
    written: u32,
) -> Result<u32, queue::Error> {
    // There is a byte, or the chain would not have been a request.
    let last = chain.writable_len().saturating_sub(1);
    chain.write_at(memory, last, &[status as u8])?;
    Ok(if written as usize == last {
        written + 1
    } else {
        written
    })
}

impl Counters {
    fn count(&self, request: Request) {
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        match request {
            Request::Read { len, .. } => {
                add(&self.reads, 1);
                add(&self.read_bytes, len as u64);
            }
            Request::Write { len, .. } => {
                add(&self.writes, 1);
                add(&self.written_bytes, len as u64);
            }
            Request::Flush => {
                add(&self.flushes, 1);
            }
            Request::Id { .. } => {}
        }
    }
}
