//! Signals. SIGTERM, SIGINT, SIGQUIT and SIGHUP end the VM in good order: sockets removed, terminal restored. SIGWINCH says that the
//! terminal has another size. SIGXFSZ is not heard: a disk or a console's file that may not grow is an error of that write, not the end of
//! the VM. Of SIGBUS nothing can be made but an end that says why.

use std::io;
use std::thread;

use super::Controller;
use crate::control::Message;
use crate::signals::{Signals, end_at_bus_errors};

/// Blocks the signals in this thread and in all that it starts, and hands them to the controller.
pub(super) fn to_controller(controller: Controller) -> io::Result<()> {
    ignore(libc::SIGXFSZ)?;
    end_at_bus_errors()?;
    let signals = Signals::block(&[
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGHUP,
        libc::SIGWINCH,
    ])?;
    let wait = move || {
        while let Some(signal) = signals.wait() {
            let message = match signal {
                libc::SIGWINCH => Message::TerminalResized,
                _ => Message::Kill,
            };
            // When nobody listens, the VM is ending already.
            let _ = controller.send(message);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

fn ignore(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no handler is installed.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
