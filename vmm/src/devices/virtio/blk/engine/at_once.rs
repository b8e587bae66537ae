//! Small writes to a file on a file system, which the queue's thread makes itself.
//!
//! Such a write is a copy into the page cache. An io_uring hands it to a thread of the kernel's, one after the other for a file (Linux 6.1, `io_write`;
//! later kernels spare some file systems that), so it costs two changes of threads and a guest that has gone to sleep meanwhile, and no two are done at
//! once. Where the kernel has writers wait, because the disk behind the file cannot keep up, it is what a ring is for: the thread must not wait then.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::calls::call;
use super::job::{Job, Op};
use crate::devices::virtio::blk::request::Request;

/// What is larger is worth a thread of its own.
const MOST: usize = 64 << 10;
/// A copy does not take so long.
const SLOW: Duration = Duration::from_millis(5);
/// How long a ring has the writes after one that was slow.
const HOLD: Duration = Duration::from_secs(1);

/// Makes small writes.
#[derive(Debug)]
pub struct AtOnce {
    file: File,
    /// Until when the ring has all writes.
    not_before: Option<Instant>,
}

impl AtOnce {
    /// For `file`; `None` for a block device, whose writes a ring does not hand on.
    ///
    /// # Errors
    /// When the file cannot be examined or opened once more.
    pub fn on(file: &File) -> io::Result<Option<Self>> {
        let is_file = file.metadata()?.is_file();
        let file = is_file.then(|| file.try_clone()).transpose()?;
        Ok(file.map(|file| AtOnce {
            file,
            not_before: None,
        }))
    }

    /// Whether the job's next operation is made here.
    pub fn takes(&self, job: &Job) -> bool {
        let is_small = matches!(job.request(), Request::Write { len, .. } if len <= MOST);
        is_small
            && matches!(job.next(), Some(Op::Write { .. }))
            && self.not_before.is_none_or(|end| Instant::now() >= end)
    }

    /// Makes it.
    pub fn make(&mut self, job: &mut Job) {
        let Some(op) = job.next() else { return };
        let begun = Instant::now();
        let result = call(&self.file, job, op);
        job.went(result);
        self.took(begun.elapsed());
    }

    /// A write took so long.
    fn took(&mut self, time: Duration) {
        self.not_before = (time > SLOW).then(|| Instant::now() + HOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;

    #[test]
    fn small_writes_to_files_are_made_until_one_is_slow() {
        let mut at_once = AtOnce::on(&tempfile::tempfile().unwrap()).unwrap().unwrap();
        let write = |len| {
            let request = Request::Write { offset: 0, len };
            job(request, u32::try_from(len).unwrap(), true)
        };
        assert!(at_once.takes(&write(MOST)));
        assert!(!at_once.takes(&write(MOST + 512)));
        let (offset, len) = (0, 512);
        assert!(!at_once.takes(&job(Request::Read { offset, len }, 512, true)));
        let mut durable = write(512);
        at_once.make(&mut durable);
        assert_eq!(durable.next(), Some(Op::Sync));
        assert!(!at_once.takes(&durable), "that is for the ring");
        at_once.took(SLOW + Duration::from_millis(1));
        assert!(!at_once.takes(&write(512)));
        at_once.took(Duration::ZERO);
        assert!(at_once.takes(&write(512)));
    }
}
