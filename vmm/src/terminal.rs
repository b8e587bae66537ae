//! The terminal of a guest's user: raw, so that the guest has every key, but for the one that leaves.

mod size;

use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::OnceLock;

pub use self::size::Size;

/// As standard input was before it first was in raw mode.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();

/// Standard input, a terminal, in raw mode; as it was again when this is dropped.
pub struct Raw {
    before: libc::termios,
}

impl Raw {
    /// Has the guest see each key as it is pressed, and echo it. What is printed is still processed: our own lines are on the same
    /// terminal.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        // SAFETY: all zeros is a valid `termios`, which the call overwrites.
        let mut before = unsafe { std::mem::zeroed() };
        // SAFETY: `before` lives through the call.
        checked(unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) })?;
        // Whoever was first knows best.
        let _ = BEFORE.set(before);
        let mut raw = before;
        raw.c_iflag &= !(libc::ICRNL | libc::INLCR | libc::IGNCR | libc::IXON | libc::ISTRIP);
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        set(&raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = set(&self.before);
    }
}

/// Makes standard input what it was before it was in raw mode, if it was, for a process that ends without dropping [`Raw`]. May be called where a signal is
/// handled: it reads a value that is set once, and makes a system call.
pub fn restore() {
    if let Some(before) = BEFORE.get() {
        let _ = set(before);
    }
}

fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` lives through the call.
    checked(unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, mode) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes `terminal` pass on each byte as it is, both ways.
///
/// # Errors
/// When it is no terminal.
pub fn make_raw(terminal: &impl AsFd) -> io::Result<()> {
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: all zeros is a valid `termios`, which the call overwrites.
    let mut mode = unsafe { std::mem::zeroed() };
    // SAFETY: `mode` lives through the call.
    checked(unsafe { libc::tcgetattr(fd, &raw mut mode) })?;
    // SAFETY: `mode` lives through the call, and was filled in.
    unsafe { libc::cfmakeraw(&raw mut mode) };
    // SAFETY: `mode` lives through the call.
    checked(unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const mode) })
}

/// Ctrl-A begins a command to the VMM.
const ESCAPE: u8 = 1;

/// What is typed on a terminal: keys for the guest, and the one that leaves.
#[derive(Debug)]
pub struct Keys {
    leave: u8,
    escaped: bool,
}

impl Keys {
    /// Ctrl-A and then `leave` leaves.
    pub fn leaving_by(leave: u8) -> Self {
        Keys {
            leave,
            escaped: false,
        }
    }

    /// What of `typed` is for the guest, and whether its user leaves then. Ctrl-A Ctrl-A is one Ctrl-A.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut input = Vec::with_capacity(typed.len());
        for byte in typed {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, key) if key == self.leave => return (input, true),
                (true, other) => input.push(other),
                (false, ESCAPE) => self.escaped = true,
                (false, other) => input.push(other),
            }
        }
        (input, false)
    }
}

/// Why there is nothing more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The user leaves.
    Left,
    /// Standard input has ended, or nobody takes what is typed.
    Over,
}

/// Reads standard input to its end, and gives what is typed to `take` until that says `false`. Without `keys` all of it is for the guest.
pub fn read(mut keys: Option<Keys>, mut take: impl FnMut(Vec<u8>) -> bool) -> End {
    let mut buffer = [0; 1024];
    loop {
        let count = match io::stdin().read(&mut buffer) {
            Ok(0) => return End::Over,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return End::Over,
        };
        let typed = buffer.get(..count).unwrap_or_default();
        let (input, leaves) = match &mut keys {
            Some(keys) => keys.take(typed),
            None => (typed.to_vec(), false),
        };
        if !input.is_empty() && !take(input) {
            return End::Over;
        }
        if leaves {
            return End::Left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_leaves_even_in_two_reads() {
        let mut keys = Keys::leaving_by(b'x');
        assert_eq!(keys.take(b"ls\x01"), (b"ls".to_vec(), false));
        assert_eq!(keys.take(b"xyz"), (vec![], true));
    }

    #[test]
    fn the_guest_gets_everything_else() {
        let mut keys = Keys::leaving_by(b'd');
        assert_eq!(
            keys.take(b"d\x01\x01a\x03\x01x"),
            (b"d\x01a\x03x".to_vec(), false)
        );
    }
}
