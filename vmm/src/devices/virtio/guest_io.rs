//! Files and sockets that read into guest memory, and write from it, without a copy on the way.
//!
//! Each function is one system call on a list of slices, and may do less than all of it. A guest may change the bytes meanwhile;
//! what lands in a file or socket is then one or the other, which is the guest's own affair.
//!
//! Where the kernel goes on by itself after a call, the list must outlive the call and the memory must stay mapped: [`Pieces`] are a
//! list that sees to both.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::GuestMemory;

/// As many slices as one system call takes (UIO_MAXIOV); the rest is left for the next.
const SLICES_MAX: usize = 1024;

/// Pieces of guest memory in the form that the kernel wants, for it to work on by itself. They keep that memory mapped, and the list
/// stays where it is when they are moved.
#[derive(Debug)]
pub struct Pieces {
    list: Vec<libc::iovec>,
    /// As many of `list` as are done.
    done: usize,
    _memory: Arc<GuestMemory>,
}

// SAFETY: the addresses in the list are of memory that `_memory` keeps mapped for every thread, and nothing here reads or writes
// through them but the kernel.
unsafe impl Send for Pieces {}

impl Pieces {
    /// The pieces that `slices` finds in `memory`.
    ///
    /// # Errors
    /// What `slices` says.
    pub fn of<E>(
        memory: &Arc<GuestMemory>,
        slices: impl for<'m> FnOnce(&'m GuestMemory) -> Result<Vec<VolatileSlice<'m>>, E>,
    ) -> Result<Self, E> {
        let list = slices(memory)?.iter().map(iovec).collect();
        Ok(Pieces {
            list,
            done: 0,
            _memory: memory.clone(),
        })
    }

    /// The next pieces, no more than one system call takes. The list stays valid until `advance` is called or the pieces are dropped.
    pub fn list(&self) -> &[libc::iovec] {
        let rest = self.list.get(self.done..).unwrap_or_default();
        rest.get(..SLICES_MAX).unwrap_or(rest)
    }

    /// Whether nothing is left to be done.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// The next `bytes` are done.
    pub fn advance(&mut self, mut bytes: usize) {
        while let Some(piece) = self.list.get_mut(self.done) {
            if bytes < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(bytes);
                piece.iov_len -= bytes;
                return;
            }
            bytes -= piece.iov_len;
            self.done += 1;
        }
    }
}

/// Reads from `file` at `offset` into the next pieces; says how many bytes, 0 at its end.
///
/// # Errors
/// What `preadv` says.
pub fn read_at(file: &File, offset: u64, pieces: &Pieces) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let list = pieces.list();
    again(|| {
        // SAFETY: the list describes pieces of mapped memory that `pieces` keeps mapped, and which nobody believes to be
        // unchanging: they are guest memory.
        unsafe { libc::preadv(file.as_raw_fd(), list.as_ptr(), list.len() as _, offset) }
    })
}

/// Writes the next pieces to `file` at `offset`; says how many bytes.
///
/// # Errors
/// What `pwritev` says.
pub fn write_at(file: &File, offset: u64, pieces: &Pieces) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let list = pieces.list();
    again(|| {
        // SAFETY: as in `read_at`; the memory is only read here.
        unsafe { libc::pwritev(file.as_raw_fd(), list.as_ptr(), list.len() as _, offset) }
    })
}

/// Receives what `stream` has, without waiting; says how many bytes, 0 at its end.
///
/// # Errors
/// `WouldBlock` when it has nothing; or what `recvmsg` says.
pub fn receive(stream: &UnixStream, slices: &[VolatileSlice]) -> io::Result<usize> {
    transfer(slices, |list, count| {
        let mut message = message(list, count);
        // SAFETY: as in `read_at`; the message has neither name nor control data, so nothing else is written to.
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
    })
}

/// Sends to `stream`, without waiting; says how many bytes.
///
/// # Errors
/// `WouldBlock` when it takes nothing; or what `sendmsg` says.
pub fn send(stream: &UnixStream, slices: &[VolatileSlice]) -> io::Result<usize> {
    transfer(slices, |list, count| {
        let message = message(list, count);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `read_at`; the memory is only read here.
        unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) }
    })
}

/// Reads one packet from `file`, without waiting if that is non-blocking: into `slices`, and what does not fit there into `spill`; says
/// how many bytes in all. What does not fit there either is lost.
///
/// # Errors
/// `InvalidInput` for more slices than one call takes; or what `readv` says.
pub fn read_packet(file: &File, slices: &[VolatileSlice], spill: &mut [u8]) -> io::Result<usize> {
    let mut list: Vec<_> = slices.iter().map(iovec).collect();
    list.push(libc::iovec {
        iov_base: spill.as_mut_ptr().cast(),
        iov_len: spill.len(),
    });
    if list.len() > SLICES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: as in `read_at`; the last piece is borrowed for us alone.
    again(|| unsafe { libc::readv(file.as_raw_fd(), list.as_ptr(), list.len() as _) })
}

/// Writes one packet to `file`, without waiting if that is non-blocking.
///
/// # Errors
/// `InvalidInput` for more slices than one call takes; or what `writev` says.
pub fn write_packet(file: &File, slices: &[VolatileSlice]) -> io::Result<usize> {
    if slices.len() > SLICES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    transfer(slices, |list, count| {
        // SAFETY: as in `read_at`; the memory is only read here.
        unsafe { libc::writev(file.as_raw_fd(), list, count as _) }
    })
}

/// What is left of `slices` when `done` bytes of them are done.
///
/// # Errors
/// Never in fact: an offset within a slice lies within it.
pub fn rest<'m>(
    slices: &[VolatileSlice<'m>],
    mut done: usize,
) -> io::Result<Vec<VolatileSlice<'m>>> {
    let mut left = Vec::with_capacity(slices.len());
    for slice in slices {
        if done >= slice.len() {
            done -= slice.len();
        } else {
            left.push(slice.offset(done).map_err(io::Error::other)?);
            done = 0;
        }
    }
    Ok(left)
}

/// The number of bytes in `slices`.
pub fn total(slices: &[VolatileSlice]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Calls `call` with the list that the kernel wants, again if a signal came in between.
fn transfer(
    slices: &[VolatileSlice],
    mut call: impl FnMut(*const libc::iovec, usize) -> isize,
) -> io::Result<usize> {
    // The slices keep the memory mapped while the kernel works on it.
    let list: Vec<_> = slices.iter().take(SLICES_MAX).map(iovec).collect();
    again(|| call(list.as_ptr(), list.len()))
}

/// Makes a system call, again if a signal came in between.
fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn iovec(slice: &VolatileSlice) -> libc::iovec {
    let guard = slice.ptr_guard_mut();
    libc::iovec {
        iov_base: guard.as_ptr().cast(),
        iov_len: guard.len(),
    }
}

fn message(list: *const libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all zeros is a message without name, data and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = list.cast_mut();
    message.msg_iovlen = count;
    message
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

    use super::*;
    use crate::devices::virtio::test_driver::ram;

    /// The pieces of `memory` at these places.
    fn pieces(memory: &Arc<GuestMemory>, parts: &[(u64, usize)]) -> Pieces {
        let slices = Pieces::of(memory, |memory| {
            let slices = parts.iter().flat_map(|(at, len)| {
                memory
                    .get_slices(GuestAddress(*at), *len, Permissions::ReadWrite)
                    .unwrap()
            });
            slices.collect()
        });
        slices.unwrap()
    }

    #[test]
    fn pieces_go_to_a_file_and_come_back() {
        let memory = ram(0x10000);
        memory.write_slice(b"one two", GuestAddress(0x100)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut parts = pieces(&memory, &[(0x100, 3), (0x103, 4)]);
        assert_eq!(write_at(&file, 5, &parts).unwrap(), 7);
        parts.advance(4);
        assert_eq!(write_at(&file, 12, &parts).unwrap(), 3);
        let mut back = pieces(&memory, &[(0x200, 5), (0x300, 100)]);
        assert_eq!(read_at(&file, 5, &back).unwrap(), 10);
        let mut text = [0; 5];
        memory.read_slice(&mut text, GuestAddress(0x300)).unwrap();
        assert_eq!(&text, b"wotwo");
        assert_eq!(read_at(&file, 15, &back).unwrap(), 0, "the end");
        assert!(read_at(&file, u64::MAX, &back).is_err());
        parts.advance(3);
        assert!(parts.is_empty());
        back.advance(usize::MAX);
        assert!(back.is_empty(), "more than there is");
    }

    #[test]
    fn a_call_gets_no_more_pieces_than_it_takes() {
        let memory = ram(0x10000);
        let parts: Vec<_> = (0..3000).map(|at| (at * 4, 2)).collect();
        let mut parts = pieces(&memory, &parts);
        let mut lengths = Vec::new();
        while !parts.is_empty() {
            lengths.push(parts.list().len());
            // One byte short, so that a piece is begun.
            let bytes: usize = parts.list().iter().map(|piece| piece.iov_len).sum();
            parts.advance((bytes - 1).max(1));
        }
        assert_eq!(lengths, [1024, 1024, 954, 1]);
    }

    #[test]
    fn sockets_never_wait_and_never_signal() {
        let memory = ram(0x10000);
        let slices: Vec<_> = memory
            .get_slices(GuestAddress(0), 0x8000, Permissions::ReadWrite)
            .unwrap()
            .map(|slice| slice.unwrap())
            .collect();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let kind = |result: io::Result<usize>| result.unwrap_err().kind();
        assert_eq!(kind(receive(&ours, &slices)), io::ErrorKind::WouldBlock);
        while send(&ours, &slices).is_ok() {}
        assert_eq!(kind(send(&ours, &slices)), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(kind(send(&ours, &slices)), io::ErrorKind::BrokenPipe);
    }
}
