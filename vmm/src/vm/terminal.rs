//! Standard input as the guest's keyboard. A terminal is put into raw mode, where Ctrl-A x ends the VM; it is restored when the VM
//! has ended.

use std::io::{self, IsTerminal, Read, Stdin};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use vmm_sys_util::terminal::Terminal;

use super::Controller;
use crate::control::Message;
use crate::devices::console::Console;

/// A terminal in raw mode, until this is dropped.
#[derive(Debug)]
pub(super) struct Raw(Tty);

/// Standard input, known to be a terminal.
#[derive(Debug)]
struct Tty(Stdin);

// SAFETY: standard input stays open for as long as the process lives.
unsafe impl Terminal for Tty {
    fn tty_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.0.set_canon_mode();
    }
}

/// How long to wait for the guest to read what it has.
const GUEST_IS_SLOW: Duration = Duration::from_millis(10);
/// Ctrl-A begins a command to the VMM.
const ESCAPE: u8 = 1;

/// Feeds standard input to the console until either ends.
pub(super) fn connect(console: Weak<Console>, controller: Controller) -> io::Result<Option<Raw>> {
    let stdin = io::stdin();
    let raw = if stdin.is_terminal() {
        let tty = Tty(stdin);
        tty.set_raw_mode()
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Some(Raw(tty))
    } else {
        None
    };
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
