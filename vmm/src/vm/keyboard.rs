//! Standard input as the guest's keyboard. On a terminal Ctrl-A x ends the VM.

use std::io::{self, IsTerminal};
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use super::Controller;
use crate::control::Message;
use crate::devices::console::Console;
use crate::terminal::{self, End, Keys, Raw};

/// How long to wait for the guest to read what it has.
const GUEST_IS_SLOW: Duration = Duration::from_millis(10);
/// What ends the VM behind Ctrl-A.
const LEAVE: u8 = b'x';

/// Feeds standard input to the console until either ends.
pub(super) fn connect(console: Weak<Console>, controller: Controller) -> io::Result<Option<Raw>> {
    let raw = io::stdin().is_terminal().then(Raw::enter).transpose()?;
    let keys = raw.is_some().then(|| Keys::leaving_by(LEAVE));
    thread::Builder::new().name("stdin".into()).spawn(move || {
        if terminal::read(keys, |input| feed(&console, &input)) == End::Left {
            // When nobody listens, the VM is ending already.
            let _ = controller.send(Message::Kill);
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
