//! virtio-blk (virtio 1.2, 5.2): a disk on a raw image or a block device.
//!
//! [`image`] is the host's side, [`config`] what the driver is told, [`request`] what it asks, [`engine`] how that is done. A disk has a
//! queue for each of the VM's processors, so that none waits for another, and each queue that the driver enables has a thread
//! ([`queue_worker`]) and an engine of its own; [`disk`] is what they share.

mod config;
mod disk;
mod engine;
mod image;
mod patience;
mod queue_worker;
mod request;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use self::disk::Disk;
use self::engine::Engine;
use self::image::Image;
pub use self::image::{OpenError, Serial};
use self::patience::Patience;
use self::queue_worker::QueueWorker;
use self::request::Allowed;
use super::worker::Worker;
use super::{Active, Device, Kind, StartError};

/// The device.
#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    features: u64,
    config: Vec<u8>,
    queue_sizes: Vec<u16>,
    /// How requests are done; decided when the device first starts.
    engine: Option<engine::Kind>,
    workers: Vec<Worker<()>>,
}

/// What a disk is like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether it is only read.
    pub readonly: bool,
    /// Its serial number, padded with zeros; `None` for one that is made of what identifies the file.
    pub serial: Option<Serial>,
    /// How many queues it has: at least one, and no more than 16 whatever is asked for.
    pub queues: u16,
}

impl Blk {
    /// A disk on the raw image or block device `path`; idle. Others cannot use it meanwhile, unless all only read.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        Ok(Blk::on(Image::open(path, options.readonly)?, options))
    }

    /// The same on a file that this process has open already.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn take(fd: RawFd, options: Options) -> Result<Self, OpenError> {
        Ok(Blk::on(Image::take(fd, options.readonly)?, options))
    }

    fn on(mut image: Image, options: Options) -> Self {
        if let Some(serial) = options.serial {
            image.id = serial;
        }
        Blk::new(image, options.queues)
    }

    fn new(image: Image, queues: u16) -> Self {
        let queues = queues.clamp(1, config::QUEUES_MAX);
        Blk {
            features: config::features(&image, queues),
            config: config::space(&image, queues),
            queue_sizes: vec![config::QUEUE_SIZE; queues.into()],
            disk: Arc::new(Disk::new(image)),
            engine: None,
            workers: Vec::new(),
        }
    }

    /// An engine for each of the queues of these sizes, all of one kind. Whether there is an io_uring is found out once, by making the
    /// first ones, and said once if there is none.
    fn engines(&mut self, sizes: &[u16]) -> io::Result<Vec<Engine>> {
        let file = &self.disk.image.file;
        let engines = |kind| {
            let engine = |size: &u16| Engine::new(kind, file, *size);
            sizes.iter().map(engine).collect::<io::Result<Vec<_>>>()
        };
        if let Some(kind) = self.engine {
            return engines(kind);
        }
        match engines(engine::Kind::Ring) {
            Ok(rings) => {
                self.engine = Some(engine::Kind::Ring);
                Ok(rings)
            }
            Err(error) => {
                log::warn!(
                    "virtio-blk: there is no io_uring here, so each queue does one request at a time: {error}"
                );
                self.engine = Some(engine::Kind::Calls);
                engines(engine::Kind::Calls)
            }
        }
    }
}

impl Device for Blk {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        // The first queue is there with and without VIRTIO_BLK_F_MQ (5.2.2).
        let mut queues = vec![(0, active.take_queue(0)?)];
        let others = active.queues.into_iter().enumerate();
        queues.extend(others.filter_map(|(index, queue)| Some((index, queue?))));
        let sizes: Vec<_> = queues.iter().map(|(_, queue)| queue.queue.size()).collect();
        let engines = self.engines(&sizes).map_err(|source| StartError::System {
            what: "prepare the disk's requests",
            source,
        })?;
        let took = |feature| active.features & feature != 0;
        let allowed = Allowed {
            discard: took(config::F_DISCARD),
            write_zeroes: took(config::F_WRITE_ZEROES),
        };
        let write_through = !took(config::F_FLUSH);
        for ((index, queue), engine) in queues.into_iter().zip(engines) {
            let worker = QueueWorker {
                disk: self.disk.clone(),
                memory: active.memory.clone(),
                queue,
                engine,
                patience: Patience::new(Instant::now()),
                fault: active.fault.clone(),
                allowed,
                write_through,
            };
            let name = format!("virtio-blk-{index}");
            match Worker::spawn(&name, move |events| worker.run(events)) {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        // All at once, for each waits for what it has in flight.
        self.workers.iter().for_each(Worker::tell_to_stop);
        self.workers.clear();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.disk.counters()
    }
}
