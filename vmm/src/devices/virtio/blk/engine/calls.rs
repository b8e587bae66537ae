//! An engine of system calls: each operation is a call, and the thread waits for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::job::{Job, Op, zeroes};
use crate::devices::virtio::guest_io;

/// Does jobs one after the other.
#[derive(Debug)]
pub struct Calls {
    file: File,
    waiting: VecDeque<Job>,
}

impl Calls {
    /// An engine that works on `file`.
    pub fn new(file: File) -> Self {
        Calls {
            file,
            waiting: VecDeque::new(),
        }
    }

    /// Takes a job, for the next turn.
    pub fn push(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Does all jobs, to their ends.
    pub fn turn(&mut self, done: &mut Vec<Job>) {
        for mut job in self.waiting.drain(..) {
            while let Some(op) = job.next() {
                let result = call(&self.file, &job, op);
                job.went(result);
            }
            done.push(job);
        }
    }
}

/// Does one operation.
pub(super) fn call(file: &File, job: &Job, op: Op) -> io::Result<usize> {
    match op {
        Op::Read { offset } => guest_io::read_at(file, offset, job.pieces()),
        Op::Write { offset } => guest_io::write_at(file, offset, job.pieces()),
        Op::Zeroes { offset, len } => file.write_at(zeroes(len), offset),
        Op::Allocate { mode, offset, len } => {
            let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
            // SAFETY: the call takes numbers only, and touches no memory of ours.
            match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
                0 => Ok(0),
                _ => Err(io::Error::last_os_error()),
            }
        }
        Op::Sync => file.sync_data().map(|()| 0),
    }
}
