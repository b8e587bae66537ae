//! How requests are done: here, each at once and by the thread that asks, with preadv and pwritev on guest memory.
//!
//! Nothing outside of this file knows how: an engine takes a [`Request`] with its chain and says how it went.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::image::Image;
use super::request::{HEADER_LEN, Request};
use crate::devices::virtio::queue::{self, Chain};
use crate::devices::virtio::{GuestMemory, guest_io};

/// Does requests to one disk.
#[derive(Debug)]
pub struct Engine {
    image: Arc<Image>,
    /// Whether a write must be durable when it is said to be done, because the driver will never ask for a flush
    /// (virtio 1.2, 5.2.6.2).
    write_through: bool,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The chain or guest memory.
    #[error("the chain is malformed")]
    Queue(#[from] queue::Error),
    /// The host's disk.
    #[error("the disk failed")]
    Disk(#[from] io::Error),
}

impl Engine {
    /// An engine for `image`.
    pub fn new(image: Arc<Image>, write_through: bool) -> Self {
        Engine {
            image,
            write_through,
        }
    }

    /// Does a request; says how many bytes of data were written to the chain.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn run(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        request: Request,
    ) -> Result<u32, Failure> {
        let file = &self.image.file;
        match request {
            Request::Read { offset, len } => {
                let slices = chain.writable_slices(memory, 0, len)?;
                all(file, offset, slices, guest_io::read_at)?;
                // A chain has less than 4 GiB.
                Ok(len as u32)
            }
            Request::Write { offset, len } => {
                let slices = chain.readable_slices(memory, HEADER_LEN, len)?;
                all(file, offset, slices, guest_io::write_at)?;
                if self.write_through {
                    file.sync_data()?;
                }
                Ok(0)
            }
            Request::Flush => {
                if !self.image.readonly {
                    file.sync_data()?;
                }
                Ok(0)
            }
            Request::Id { len } => {
                let id = &self.image.id;
                let said = id.get(..len).unwrap_or(id);
                chain.write_at(memory, 0, said)?;
                Ok(said.len() as u32)
            }
        }
    }
}

/// Transfers all of `slices`, however many calls it takes.
fn all(
    file: &File,
    mut offset: u64,
    mut slices: Vec<vm_memory::VolatileSlice>,
    transfer: impl Fn(&File, u64, &[vm_memory::VolatileSlice]) -> io::Result<usize>,
) -> io::Result<()> {
    while !slices.is_empty() {
        let done = transfer(file, offset, &slices)?;
        if done == 0 {
            // The file was made shorter behind our back.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if done == guest_io::total(&slices) {
            break;
        }
        offset += done as u64;
        slices = guest_io::rest(&slices, done)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::devices::virtio::test_driver::ram;
    use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

    #[test]
    fn short_transfers_are_continued_and_an_end_is_an_error() {
        let memory = ram(0x1000);
        let slices = || -> Vec<_> {
            [(0, 100), (200, 100)]
                .into_iter()
                .flat_map(|(at, len)| {
                    memory
                        .get_slices(GuestAddress(at), len, Permissions::ReadWrite)
                        .unwrap()
                })
                .map(|slice| slice.unwrap())
                .collect()
        };
        let file = tempfile::tempfile().unwrap();
        let calls = RefCell::new(Vec::new());
        let short = |_: &File, offset, slices: &[vm_memory::VolatileSlice]| {
            calls.borrow_mut().push((offset, guest_io::total(slices)));
            Ok(guest_io::total(slices).min(70))
        };
        all(&file, 1000, slices(), short).unwrap();
        assert_eq!(*calls.borrow(), [(1000, 200), (1070, 130), (1140, 60)]);
        let error = all(&file, 0, slices(), guest_io::read_at).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
