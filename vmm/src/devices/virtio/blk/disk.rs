//! What the queues of one disk share: the image, the counters, and how a request that has ended is answered.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::engine::Job;
use super::image::Image;
use super::request::{Request, Status};
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::{self, Chain};

/// A disk, for all that work on it.
#[derive(Debug)]
pub struct Disk {
    /// The host's side.
    pub image: Image,
    counters: Counters,
    complained: AtomicBool,
}

/// What it has done.
#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    write_zeroes: AtomicU64,
    errors: AtomicU64,
}

impl Disk {
    /// A disk that has done nothing.
    pub fn new(image: Image) -> Self {
        Disk {
            image,
            counters: Counters::default(),
            complained: AtomicBool::new(false),
        }
    }

    /// Answers a job that has ended, and says how many bytes were written to its chain.
    ///
    /// # Errors
    /// When guest memory cannot be reached.
    pub fn finish(&self, memory: &GuestMemory, job: &Job) -> Result<u32, queue::Error> {
        let request = job.request();
        if let Err(error) = job.result() {
            self.complain(request, error);
            return self.answer(memory, job.chain(), Status::IoError, 0);
        }
        let written = match request {
            // A chain has less than 4 GiB.
            Request::Read { len, .. } => len as u32,
            Request::Id { len } => {
                let id = &self.image.id;
                let said = id.get(..len).unwrap_or(id);
                job.chain().write_at(memory, 0, said)?;
                said.len() as u32
            }
            _ => 0,
        };
        self.count(request);
        self.answer(memory, job.chain(), Status::Ok, written)
    }

    /// Writes the status, which is the last byte, and says how many bytes were written without a gap from the first one on
    /// (virtio 1.2, 2.7.8.2); `written` of them are data.
    ///
    /// # Errors
    /// When guest memory cannot be reached.
    pub fn answer(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        status: Status,
        written: u32,
    ) -> Result<u32, queue::Error> {
        if status != Status::Ok {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        // There is a byte, or the chain would not have been a request.
        let last = chain.writable_len().saturating_sub(1);
        chain.write_at(memory, last, &[status as u8])?;
        Ok(if written as usize == last {
            written + 1
        } else {
            written
        })
    }

    /// Once, so that neither a guest nor a full disk can fill the log; the counter says how often.
    fn complain(&self, request: Request, error: &io::Error) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            log::warn!(
                "virtio-blk: {request:?} failed, and the guest is told of an I/O error: {error}"
            );
        }
    }

    fn count(&self, request: Request) {
        let counters = &self.counters;
        let add = |counter: &AtomicU64, count| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        match request {
            Request::Read { len, .. } => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, len as u64);
            }
            Request::Write { len, .. } => {
                add(&counters.writes, 1);
                add(&counters.written_bytes, len as u64);
            }
            Request::Flush | Request::Nothing => add(&counters.flushes, 1),
            Request::Discard { .. } => add(&counters.discards, 1),
            Request::WriteZeroes { .. } => add(&counters.write_zeroes, 1),
            Request::Id { .. } => {}
        }
    }

    /// What it has done, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        [
            ("reads", &counters.reads),
            ("read_bytes", &counters.read_bytes),
            ("writes", &counters.writes),
            ("written_bytes", &counters.written_bytes),
            ("flushes", &counters.flushes),
            ("discards", &counters.discards),
            ("write_zeroes", &counters.write_zeroes),
            ("errors", &counters.errors),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .into()
    }
}
