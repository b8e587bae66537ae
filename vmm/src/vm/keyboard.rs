//! The guest's keyboard: standard input, or a pseudo-terminal of its own. On a terminal Ctrl-A x ends the VM.

use std::io::{self, IsTerminal};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::Controller;
use crate::config::ConsoleConfig;
use crate::control::Message;
use crate::devices::console::{Console, pty};
use crate::devices::virtio::worker::Worker;
use crate::terminal::{self, End, Keys, Raw, Size};

/// How long to wait for the guest to read what it has.
const GUEST_IS_SLOW: Duration = Duration::from_millis(10);
/// What ends the VM behind Ctrl-A.
const LEAVE: u8 = b'x';

/// Where the console's input comes from, beside its clients.
#[derive(Default)]
pub(super) struct Keyboard {
    /// The terminal that the VMM runs on, which is as it was again when this is dropped.
    terminal: Option<Raw>,
    /// Reads the pseudo-terminal. Held for what its end means.
    _pty: Option<Worker<()>>,
}

impl Keyboard {
    /// Feeds the console until either ends.
    pub(super) fn connect(
        config: &ConsoleConfig,
        console: &Arc<Console>,
        controller: Controller,
    ) -> io::Result<Self> {
        let mut keyboard = Keyboard::default();
        let weak = Arc::downgrade(console);
        if *config == ConsoleConfig::Stdio {
            keyboard.terminal = read_standard_input(weak, controller)?;
            keyboard.follow_size(console);
        } else if let Some(pty) = console.pty() {
            let reader = pty::listen(pty.clone(), weak).map_err(io::Error::other)?;
            keyboard._pty = Some(reader);
        }
        Ok(keyboard)
    }

    /// Has the console be as large as the terminal that the VMM runs on, if it does and the console can.
    pub(super) fn follow_size(&self, console: &Console) {
        if self.terminal.is_some()
            && let Some(size) = Size::of_user()
        {
            // A serial port has none to set.
            let _ = console.resize(size);
        }
    }
}

fn read_standard_input(console: Weak<Console>, controller: Controller) -> io::Result<Option<Raw>> {
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
