//! How requests are done: by an io_uring, or where there is none by system calls, one after the other.
//!
//! What a request takes is a [`Job`]: a series of single operations, of which there is always one at a time. An engine only does
//! operations, and tells the job how they went: [`ring`] hands those of many jobs to the kernel in one call and takes their results as
//! they come, in any order, but for small writes to files ([`at_once`]); [`calls`] makes a call for each and waits for it. So both do the same to the disk and to guest memory, and
//! differ in time only.
//!
//! An engine belongs to one queue and its thread. It holds no more jobs than the queue has descriptors, since each has a head.

mod at_once;
mod calls;
mod job;
mod ring;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

pub use job::Job;

use calls::Calls;
use ring::Ring;

/// Which engine does a disk's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An io_uring for each queue.
    Ring,
    /// System calls.
    Calls,
}

/// Does the jobs of one queue.
#[derive(Debug)]
pub enum Engine {
    /// See [`Kind::Ring`].
    Ring(Box<Ring>),
    /// See [`Kind::Calls`].
    Calls(Calls),
}

impl Engine {
    /// An engine that works on `file` for a queue of `size` descriptors.
    ///
    /// # Errors
    /// When there is no io_uring to be had: the kernel is without it, or it is forbidden.
    pub fn new(kind: Kind, file: &File, size: u16) -> io::Result<Self> {
        Ok(match kind {
            Kind::Ring => Engine::Ring(Box::new(Ring::new(file, size)?)),
            Kind::Calls => Engine::Calls(Calls::new(file.try_clone()?)),
        })
    }

    /// What is readable while there are results that [`Engine::turn`] has not taken.
    pub fn results(&self) -> Option<RawFd> {
        match self {
            Engine::Ring(ring) => Some(ring.results()),
            Engine::Calls(_) => None,
        }
    }

    /// Takes a job. Nothing of it is done before the next turn.
    pub fn push(&mut self, job: Job) {
        match self {
            Engine::Ring(ring) => ring.push(job),
            Engine::Calls(calls) => calls.push(job),
        }
    }

    /// Begins what was pushed, and moves to `done` what has ended.
    ///
    /// # Errors
    /// When the kernel takes nothing more; the engine can then only be drained.
    pub fn turn(&mut self, done: &mut Vec<Job>) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.turn(done),
            Engine::Calls(calls) => {
                calls.turn(done);
                Ok(())
            }
        }
    }

    /// Waits until all that was pushed has ended, and moves it to `done`.
    ///
    /// # Errors
    /// When that cannot be waited for. What is then left keeps its guest memory mapped for ever.
    pub fn drain(&mut self, done: &mut Vec<Job>) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.drain(done),
            Engine::Calls(calls) => {
                calls.turn(done);
                Ok(())
            }
        }
    }
}
