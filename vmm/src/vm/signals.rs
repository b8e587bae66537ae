//! Signals. SIGTERM, SIGINT, SIGQUIT and SIGHUP end the VM in good order: sockets removed, terminal restored. SIGXFSZ is not heard: a disk
//! or a console's file that may not grow is an error of that write, not the end of the VM.

use std::io;
use std::thread;

use super::Controller;
use crate::control::Message;

/// Blocks the signals in this thread and in all that it starts, and hands them to the controller.
pub(super) fn to_controller(controller: Controller) -> io::Result<()> {
    ignore(libc::SIGXFSZ)?;
    let signals = blocked()?;
    let wait = move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values.
        while unsafe { libc::sigwait(&signals, &mut signal) } == 0 {
            // When nobody listens, the VM is ending already.
            let _ = controller.send(Message::Kill);
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

fn blocked() -> io::Result<libc::sigset_t> {
    // SAFETY: sigemptyset initialises the set before anything reads it; the numbers are valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
            0 => Ok(set),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}
