//! Signals that are waited for rather than handled.

use std::io;

/// Signals that no thread is interrupted by.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them in this thread and in all that it starts from now on. To be called while there is one thread: any other would still
    /// have them.
    ///
    /// # Errors
    /// When one of them is no signal.
    pub fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: sigemptyset initialises the set before anything reads it, and it lives through the calls.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                if libc::sigaddset(&raw mut set, *signal) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Signals(set)),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) -> Option<libc::c_int> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values.
        let waited = unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        (waited == 0).then_some(signal)
    }
}
