//! A process's terminal: libcontainer opens it inside the container, from the container's own devpts, and sends its master
//! over a unix socket.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The socket on which a terminal's master arrives. Its file goes with it.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Makes the socket at `path`, in place of an older one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(path: PathBuf) -> io::Result<Self> {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master, which must have been sent already.
    ///
    /// # Errors
    /// When nothing has been sent.
    pub fn receive(self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        connection.set_nonblocking(true)?;
        let mut data = [0; 64];
        let mut iov = [IoSliceMut::new(&mut data)];
        let mut space = cmsg_space!([i32; 1]);
        let message = recvmsg::<()>(
            connection.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let Some(&fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us; there is room for one only.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Err(io::Error::other("no terminal was sent"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Sets a terminal's size in characters. Sizes beyond what a terminal can have become the largest.
///
/// # Errors
/// What the kernel says.
pub fn resize(master: &impl AsFd, width: u32, height: u32) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: u16::try_from(height).unwrap_or(u16::MAX),
        ws_col: u16::try_from(width).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let fd = master.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call; the descriptor is borrowed.
    match unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a terminal its first size, in characters; one that it has already stays.
///
/// # Errors
/// What the kernel says.
pub fn give_size(terminal: &impl AsFd, width: u64, height: u64) -> io::Result<()> {
    let size = size_of(terminal)?;
    if (size.ws_col, size.ws_row) != (0, 0) {
        return Ok(());
    }
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    resize(terminal, number(width), number(height))
}

fn size_of(terminal: &impl AsFd) -> io::Result<libc::winsize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes one winsize, which lives through the call; the descriptor is borrowed.
    match unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) } {
        0 => Ok(size),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    #[test]
    fn receives_a_terminal_and_resizes_it() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::new(dir.path().join("console")).unwrap();
        let path = socket.path().to_owned();
        let peer = UnixStream::connect(&path).unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        let fds = [pty.master.as_raw_fd()];
        sendmsg::<()>(
            peer.as_raw_fd(),
            &[IoSlice::new(b"ptmx")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        let master = socket.receive().unwrap();
        assert!(!path.exists());
        resize(&master, 132, 1_000_000).unwrap();
        let size = size_of(&pty.slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, u16::MAX));
    }

    #[test]
    fn a_terminal_is_given_a_size_once() {
        let pty = nix::pty::openpty(None, None).unwrap();
        for (width, height) in [(0, 0), (100, 30), (80, 24)] {
            give_size(&pty.slave, width, height).unwrap();
        }
        let size = size_of(&pty.master).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (100, 30));
        let file = tempfile::tempfile().unwrap();
        assert!(give_size(&file, 80, 24).is_err());
    }

    #[test]
    fn a_terminal_that_was_not_sent_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::new(dir.path().join("console")).unwrap();
        assert!(socket.receive().is_err());
        let socket = ConsoleSocket::new(dir.path().join("console")).unwrap();
        let _peer = UnixStream::connect(socket.path()).unwrap();
        assert!(socket.receive().is_err());
    }
}
