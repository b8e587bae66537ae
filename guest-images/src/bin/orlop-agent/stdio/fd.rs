//! A pipe's end or a terminal's master, read and written without blocking.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;

/// An open file that tokio polls.
pub struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Takes a pipe's end or a terminal's master, and makes it non-blocking. The other end is not affected.
    ///
    /// # Errors
    /// When the file cannot be polled. Must be called within a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd keeps its descriptor, open and the same, for as long as it lives.
        let polled = unsafe { AsyncFd::register(fd) }?;
        Ok(Self(polled))
    }

    /// Reads what is there, waiting for something to be; 0 is the end. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|fd| Ok(nix::unistd::read(fd, buffer)?)) {
                return result;
            }
        }
    }

    /// Reads what is there now.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is; otherwise what the kernel says.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0.get_ref(), buffer)?)
    }

    /// Whether there is something to read now.
    pub fn has_data(&self) -> bool {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled
                .iter()
                .filter_map(PollFd::revents)
                .any(|events| events.contains(PollFlags::POLLIN))
    }

    /// Writes all of `bytes`, waiting for room.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(result) = ready.try_io(|fd| Ok(nix::unistd::write(fd, bytes)?)) {
                bytes = bytes.get(result?..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> i32 {
        self.0.get_ref().as_raw_fd()
    }
}
