//! Files and sockets that read into guest memory, and write from it, without a copy on the way.
//!
//! Each function is one system call on a list of slices, and may do less than all of it. A guest may change the bytes meanwhile;
//! what lands in a file or socket is then one or the other, which is the guest's own affair.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

/// As many slices as one system call takes (UIO_MAXIOV); the rest is left for the next.
const SLICES_MAX: usize = 1024;

/// Reads from `file` at `offset`; says how many bytes, 0 at its end.
///
/// # Errors
/// What `preadv` says.
pub fn read_at(file: &File, offset: u64, slices: &[VolatileSlice]) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    transfer(slices, |list, count| {
        // SAFETY: the list describes `count` pieces of mapped memory that `slices` keeps mapped, and which nobody believes to be
        // unchanging: they are guest memory.
        unsafe { libc::preadv(file.as_raw_fd(), list, count as libc::c_int, offset) }
    })
}

/// Writes to `file` at `offset`; says how many bytes.
///
/// # Errors
/// What `pwritev` says.
pub fn write_at(file: &File, offset: u64, slices: &[VolatileSlice]) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    transfer(slices, |list, count| {
        // SAFETY: as in `read_at`; the memory is only read here.
        unsafe { libc::pwritev(file.as_raw_fd(), list, count as libc::c_int, offset) }
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
    // The guards keep the memory mapped while the kernel works on it.
    let guards: Vec<_> = slices
        .iter()
        .take(SLICES_MAX)
        .map(VolatileSlice::ptr_guard_mut)
        .collect();
    let list: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    loop {
        match usize::try_from(call(list.as_ptr(), list.len())) {
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

    #[test]
    fn pieces_go_to_a_file_and_come_back() {
        let memory = ram(0x10000);
        let slices = |parts: &[(u64, usize)]| -> Vec<_> {
            let piece = |(at, len): &(u64, usize)| {
                let mut found = memory
                    .get_slices(GuestAddress(*at), *len, Permissions::ReadWrite)
                    .unwrap();
                found.next().unwrap().unwrap()
            };
            parts.iter().map(piece).collect()
        };
        memory.write_slice(b"one two", GuestAddress(0x100)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let parts = slices(&[(0x100, 3), (0x103, 4)]);
        assert_eq!(total(&parts), 7);
        assert_eq!(write_at(&file, 5, &parts).unwrap(), 7);
        assert_eq!(write_at(&file, 12, &rest(&parts, 4).unwrap()).unwrap(), 3);
        let back = slices(&[(0x200, 5), (0x300, 100)]);
        assert_eq!(read_at(&file, 5, &back).unwrap(), 10);
        let mut text = [0; 5];
        memory.read_slice(&mut text, GuestAddress(0x300)).unwrap();
        assert_eq!(&text, b"wotwo");
        assert_eq!(read_at(&file, 15, &back).unwrap(), 0, "the end");
        assert!(read_at(&file, u64::MAX, &back).is_err());
        assert!(rest(&parts, 7).unwrap().is_empty());
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
