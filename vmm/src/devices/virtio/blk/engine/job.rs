//! A request on its way: what is to be done next, and how the end is reached.
//!
//! ```text
//! Read          read, and again while it was short
//! Write         write, and again while it was short; sync, where the driver will not ask for it
//! Flush         sync
//! Discard       punch a hole
//! WriteZeroes   punch a hole if that is allowed, or zero the range, or write zeroes; sync as for a write
//! ```

use std::io;
use std::sync::Arc;

use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::blk::request::{HEADER_LEN, Request};
use crate::devices::virtio::guest_io::Pieces;
use crate::devices::virtio::queue::{self, Chain};

/// What zeroes are written from where the disk cannot make them itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The range becomes a hole, which reads as zeroes.
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// The range reads as zeroes, and keeps its space.
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A single thing that the kernel is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read at the byte `offset` into the job's pieces.
    Read { offset: u64 },
    /// Write the job's pieces at the byte `offset`.
    Write { offset: u64 },
    /// `fallocate`.
    Allocate { mode: i32, offset: u64, len: u64 },
    /// Write up to `len` zeroes at the byte `offset`.
    Zeroes { offset: u64, len: u64 },
    /// Make durable what was written.
    Sync,
}

/// A request, all that it needs, and how far it is.
#[derive(Debug)]
pub struct Job {
    chain: Chain,
    request: Request,
    pieces: Pieces,
    /// Whether what it writes must be durable when it is said to be done.
    durable: bool,
    next: Option<Op>,
    result: io::Result<()>,
}

impl Job {
    /// A request that nothing was done of yet. `durable`: what it writes is to be durable at its end.
    ///
    /// # Errors
    /// When guest memory cannot be reached.
    pub fn new(
        chain: Chain,
        request: Request,
        memory: &Arc<GuestMemory>,
        durable: bool,
    ) -> Result<Self, queue::Error> {
        let pieces = Pieces::of(memory, |memory| match request {
            Request::Read { len, .. } => chain.writable_slices(memory, 0, len),
            Request::Write { len, .. } => chain.readable_slices(memory, HEADER_LEN, len),
            _ => Ok(Vec::new()),
        })?;
        let allocate = |mode, offset, len| Op::Allocate { mode, offset, len };
        let next = match request {
            Request::Read { offset, .. } => Some(Op::Read { offset }),
            Request::Write { offset, .. } => Some(Op::Write { offset }),
            Request::Flush => Some(Op::Sync),
            Request::Discard { offset, len } => Some(allocate(PUNCH_HOLE, offset, len)),
            Request::WriteZeroes { offset, len, unmap } => {
                let mode = if unmap { PUNCH_HOLE } else { ZERO_RANGE };
                Some(allocate(mode, offset, len))
            }
            Request::Id { .. } | Request::Nothing => None,
        };
        let empty = match request {
            Request::Read { len, .. } | Request::Write { len, .. } => len == 0,
            Request::Discard { len, .. } | Request::WriteZeroes { len, .. } => len == 0,
            _ => false,
        };
        Ok(Job {
            chain,
            request,
            pieces,
            durable,
            next: next.filter(|_| !empty),
            result: Ok(()),
        })
    }

    /// Its chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What was asked.
    pub fn request(&self) -> Request {
        self.request
    }

    /// The guest memory that is still to be read or written.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// What is to be done next; `None` at the end.
    pub fn next(&self) -> Option<Op> {
        self.next
    }

    /// How it went, at the end.
    pub fn result(&self) -> &io::Result<()> {
        &self.result
    }

    /// What was to be done next went so: for a transfer, that many bytes.
    pub fn went(&mut self, result: io::Result<usize>) {
        let Some(op) = self.next else { return };
        self.next = match result {
            Ok(count) => self.after(op, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(op),
            Err(error) => self.otherwise(op, error),
        };
    }

    fn after(&mut self, op: Op, count: usize) -> Option<Op> {
        let bytes = count as u64;
        match op {
            // The file was made shorter behind our back.
            Op::Read { .. } | Op::Write { .. } | Op::Zeroes { .. } if count == 0 => {
                self.fail(io::ErrorKind::UnexpectedEof.into())
            }
            Op::Read { offset } => {
                self.pieces.advance(count);
                let offset = offset.saturating_add(bytes);
                (!self.pieces.is_empty()).then_some(Op::Read { offset })
            }
            Op::Write { offset } => {
                self.pieces.advance(count);
                if self.pieces.is_empty() {
                    return self.written();
                }
                let offset = offset.saturating_add(bytes);
                Some(Op::Write { offset })
            }
            Op::Zeroes { offset, len } if bytes < len => Some(Op::Zeroes {
                offset: offset.saturating_add(bytes),
                len: len - bytes,
            }),
            Op::Zeroes { .. } => self.written(),
            Op::Allocate { .. } => self.written(),
            Op::Sync => None,
        }
    }

    fn written(&self) -> Option<Op> {
        self.durable.then_some(Op::Sync)
    }

    /// What is done when an operation failed.
    fn otherwise(&mut self, op: Op, error: io::Error) -> Option<Op> {
        let absent = matches!(
            error.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
        );
        match (op, self.request) {
            // To discard is a hint, and a disk that cannot do it need not (virtio 1.2, 5.2.6.2).
            (Op::Allocate { .. }, Request::Discard { .. }) if absent => None,
            (Op::Allocate { mode, offset, len }, _) if absent => Some(if mode == PUNCH_HOLE {
                Op::Allocate {
                    mode: ZERO_RANGE,
                    offset,
                    len,
                }
            } else {
                Op::Zeroes { offset, len }
            }),
            _ => self.fail(error),
        }
    }

    fn fail(&mut self, error: io::Error) -> Option<Op> {
        self.result = Err(error);
        None
    }
}

/// As many zeroes as one operation writes, at most `len`.
pub fn zeroes(len: u64) -> &'static [u8] {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    ZEROES.get(..len).unwrap_or(&ZEROES)
}
