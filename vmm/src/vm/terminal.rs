//! Standard input as the guest's keyboard. A terminal is put into raw mode, where Ctrl-A x ends the VM; it is restored when the VM
//! has ended.

use std::io::{self, IsTerminal, Read};
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use super::Controller;
use crate::control::Message;
use crate::devices::console::Console;

/// Standard input, a terminal, in raw mode; as it was again when this is dropped.
pub(super) struct Raw {
    before: libc::termios,
}

impl Raw {
    /// Has the guest see each key as it is pressed, and echo it. What is printed is still processed: the VMM's own lines are on the same
    /// terminal.
    fn enter() -> io::Result<Self> {
        // SAFETY: all zeros is a valid `termios`, which the call overwrites.
        let mut before = unsafe { std::mem::zeroed() };
        // SAFETY: `before` lives through the call.
        checked(unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) })?;
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

/// How long to wait for the guest to read what it has.
const GUEST_IS_SLOW: Duration = Duration::from_millis(10);
/// Ctrl-A begins a command to the VMM.
const ESCAPE: u8 = 1;

/// Feeds standard input to the console until either ends.
pub(super) fn connect(console: Weak<Console>, controller: Controller) -> io::Result<Option<Raw>> {
    let raw = io::stdin().is_terminal().then(Raw::enter).transpose()?;
    let interactive = raw.is_some();
    thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut escaped = false;
        let mut buffer = [0; 256];
        loop {
            let count = match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let input = buffer.get(..count).unwrap_or_default();
            let (input, leave) = if interactive {
                commands(input, &mut escaped)
            } else {
                (input.to_vec(), false)
            };
            if !feed(&console, &input) {
                return;
            }
            if leave {
                // When nobody listens, the VM is ending already.
                let _ = controller.send(Message::Kill);
                return;
            }
        }
    })?;
    Ok(raw)
}

/// Gives the guest all of `input`, as fast as it takes it; `false` once the console has gone.
fn feed(console: &Weak<Console>, mut input: &[u8]) -> bool {
    loop {
        let Some(console) = console.upgrade() else {
            return false;
        };
        input = console.feed(input);
        drop(console);
        if input.is_empty() {
            return true;
        }
        thread::sleep(GUEST_IS_SLOW);
    }
}

/// Takes the commands out of what was typed: Ctrl-A x leaves (`true`), Ctrl-A Ctrl-A is one Ctrl-A.
fn commands(typed: &[u8], escaped: &mut bool) -> (Vec<u8>, bool) {
    let mut input = Vec::with_capacity(typed.len());
    for byte in typed {
        match (std::mem::take(escaped), *byte) {
            (true, b'x') => return (input, true),
            (true, other) => input.push(other),
            (false, ESCAPE) => *escaped = true,
            (false, other) => input.push(other),
        }
    }
    (input, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_leaves_even_in_two_reads() {
        let mut escaped = false;
        assert_eq!(commands(b"ls\x01", &mut escaped), (b"ls".to_vec(), false));
        assert_eq!(commands(b"xyz", &mut escaped), (vec![], true));
    }

    #[test]
    fn the_guest_gets_everything_else() {
        let mut escaped = false;
        assert_eq!(
            commands(b"x\x01\x01a\x03", &mut escaped),
            (b"x\x01a\x03".to_vec(), false)
        );
    }
}
