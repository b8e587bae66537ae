//! An engine on an io_uring: operations go to the kernel in batches, and their results come back in any order. The ring's own descriptor is
//! readable while there are any: what was done in the call that handed it over, as the page cache's part is, is taken behind that call and wakes nobody.
//!
//! A job is kept in a slot of its own, the one of its head, from the moment that its operation stands in the submission queue until the
//! result was taken from the completion queue. Only then is it looked at again. So what the kernel was told of (the list of pieces, and
//! by it guest memory) stays where it is, whatever else happens: when the ring is dropped it waits for everything, and if it cannot
//! wait, what is left is never freed.
//!
//! Neither queue of the ring can be full: there is one operation for each job, no more jobs than heads, and the ring is made as large as
//! the queue.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};

use super::at_once::AtOnce;
use super::job::{Job, Op, zeroes};

/// The disk's place among the ring's registered files.
const DISK: Fixed = Fixed(0);
/// How often a call is made again that the kernel cannot take for lack of memory, and how long it has in between.
const ATTEMPTS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// Does jobs by an io_uring.
#[derive(Debug)]
pub struct Ring {
    ring: Uring,
    /// What makes small writes, where the ring would only hand them on.
    at_once: Option<AtOnce>,
    /// The jobs that it makes in the next turn.
    small: Vec<Job>,
    /// The jobs in flight, each in the slot of its head.
    slots: Vec<Option<Job>>,
    in_flight: usize,
    /// Jobs that ended without an operation.
    ended: Vec<Job>,
    /// How many calls have handed operations to the kernel.
    calls: u64,
}

/// The crate's ring, which cannot be printed.
struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "io_uring {}", self.0.as_raw_fd())
    }
}

impl Ring {
    /// A ring that works on `file`, for a queue of `size` descriptors.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or one that lacks an operation, or this process may not use it.
    pub fn new(file: &File, size: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(size.max(1)))?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Write::CODE,
            opcode::Fallocate::CODE,
            opcode::Fsync::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        submitter.register_files(&[file.as_raw_fd()])?;
        Ok(Ring {
            ring: Uring(ring),
            at_once: AtOnce::on(file)?,
            small: Vec::new(),
            slots: (0..size).map(|_| None).collect(),
            in_flight: 0,
            ended: Vec::new(),
            calls: 0,
        })
    }

    /// Readable while there are results to take.
    pub fn results(&self) -> RawFd {
        self.ring.0.as_raw_fd()
    }

    /// How many calls have handed operations to the kernel.
    #[cfg(test)]
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Puts a job's next operation into the submission queue, or has it made in the next turn.
    pub fn push(&mut self, job: Job) {
        if self.at_once.as_ref().is_some_and(|it| it.takes(&job)) {
            self.small.push(job);
        } else {
            self.submit(job);
        }
    }

    /// Puts a job's next operation into the submission queue.
    fn submit(&mut self, mut job: Job) {
        let Some(op) = job.next() else {
            self.ended.push(job);
            return;
        };
        let head = job.chain().head();
        let entry = entry(&job, op).user_data(head.into());
        let slot = self.slots.get_mut(usize::from(head));
        if let Some(slot) = slot.filter(|slot| slot.is_none()) {
            // SAFETY: the entry refers to the job's list of pieces and to guest memory that the list keeps mapped, or to zeroes that
            // live for ever. The job now stays in its slot, untouched, until the operation has ended: see the module.
            if unsafe { self.ring.0.submission().push(&entry) }.is_ok() {
                *slot = Some(job);
                self.in_flight += 1;
                return;
            }
        }
        // Cannot be: see the module.
        job.went(Err(io::Error::from_raw_os_error(libc::EBUSY)));
        self.ended.push(job);
    }

    /// Hands what was pushed to the kernel, and takes what has ended; what is not at its end goes on.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn turn(&mut self, done: &mut Vec<Job>) -> io::Result<()> {
        loop {
            self.make_small();
            if !self.ring.0.submission().is_empty() {
                self.enter(0)?;
            }
            if !self.take(done) {
                return Ok(());
            }
        }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// When that cannot be waited for.
    pub fn drain(&mut self, done: &mut Vec<Job>) -> io::Result<()> {
        self.make_small();
        self.take(done);
        while self.in_flight > 0 {
            self.enter(1)?;
            self.take(done);
            self.make_small();
        }
        done.append(&mut self.ended);
        Ok(())
    }

    /// Makes the small writes that were pushed, to their ends but for a sync, which is the ring's.
    fn make_small(&mut self) {
        let Some(at_once) = &mut self.at_once else {
            return;
        };
        let mut small = mem::take(&mut self.small);
        for job in &mut small {
            // What is short is continued. Behind one that was slow all are the ring's.
            while at_once.takes(job) {
                at_once.make(job);
            }
        }
        for job in small.drain(..) {
            self.submit(job);
        }
        self.small = small;
    }

    /// Hands over what was pushed, and waits for so many results.
    fn enter(&mut self, wait: usize) -> io::Result<()> {
        let mut attempts = 0;
        loop {
            self.calls += 1;
            match self.ring.0.submit_and_wait(wait) {
                Ok(_) if wait > 0 || self.ring.0.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN | libc::EBUSY) => {}
                    _ => return Err(error),
                },
            }
            attempts += 1;
            if attempts > ATTEMPTS {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes the results that have come. Says whether a job goes on, with an operation that was pushed.
    fn take(&mut self, done: &mut Vec<Job>) -> bool {
        done.append(&mut self.ended);
        let mut goes_on = false;
        let results: Vec<_> = self
            .ring
            .0
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (token, result) in results {
            let slot = usize::try_from(token)
                .ok()
                .and_then(|token| self.slots.get_mut(token));
            let Some(mut job) = slot.and_then(Option::take) else {
                continue;
            };
            self.in_flight -= 1;
            job.went(
                usize::try_from(result)
                    .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg())),
            );
            goes_on |= job.next().is_some();
            self.push(job);
        }
        done.append(&mut self.ended);
        goes_on
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(error) = self.drain(&mut Vec::new()) {
            log::error!("virtio-blk: requests in flight cannot be waited for: {error}");
            mem::forget(mem::take(&mut self.slots));
        }
        // The kernel tears a ring down some time after it was closed, and its files with it, which would hold the disk's lock.
        let _ = self.ring.0.submitter().unregister_files();
    }
}

/// An operation as the kernel is told.
fn entry(job: &Job, op: Op) -> squeue::Entry {
    let list = job.pieces().list();
    // A list has at most UIO_MAXIOV pieces.
    let count = list.len() as u32;
    match op {
        Op::Read { offset } => opcode::Readv::new(DISK, list.as_ptr(), count)
            .offset(offset)
            .build(),
        Op::Write { offset } => opcode::Writev::new(DISK, list.as_ptr(), count)
            .offset(offset)
            .build(),
        Op::Zeroes { offset, len } => {
            let zeroes = zeroes(len);
            opcode::Write::new(DISK, zeroes.as_ptr(), zeroes.len() as u32)
                .offset(offset)
                .build()
        }
        Op::Allocate { mode, offset, len } => opcode::Fallocate::new(DISK, len)
            .offset(offset)
            .mode(mode)
            .build(),
        Op::Sync => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
    }
}
