//! Signals that are waited for rather than handled, and the one that cannot be.

use std::io;

use crate::terminal;

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

/// Has a bus error end this process with a line that says what it means. It comes where a page of mapped memory cannot be had: the file behind it was made shorter,
/// or cannot be read.
///
/// # Errors
/// When the kernel does not take the handler.
pub fn end_at_bus_errors() -> io::Result<()> {
    extern "C" fn end(_: libc::c_int) {
        const WORDS: &[u8] = b"orlop: bus error: a file that is read as memory (kernel, initramfs, persistent memory or RAM) was made shorter, or cannot be read; \
            leave it alone while a VM uses it, and look for errors of its disk\n";
        terminal::restore();
        // SAFETY: both may be called in a handler (signal-safety(7)), and the words live for ever.
        unsafe {
            libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len());
            libc::_exit(1);
        }
    }
    // SAFETY: of an action of zeroes all fields are set that are looked at; the handler calls nothing but what may be called in one.
    let taken = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    match taken {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
    use std::process::Command;
    use std::ptr::null_mut;

    use super::*;

    /// Set for the process that is to end.
    const ENDS: &str = "ORLOP_TEST_BUS_ERROR";

    /// Both ends of a terminal, the user's first.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: both descriptors live through the call, and the rest is not asked for.
        let made = unsafe {
            libc::openpty(
                &raw mut ours,
                &raw mut theirs,
                null_mut(),
                null_mut(),
                null_mut(),
            )
        };
        assert_eq!(made, 0);
        // SAFETY: they were just opened, and nobody else has them.
        unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
    }

    /// Whether a terminal echoes.
    fn echoes(terminal: &OwnedFd) -> bool {
        // SAFETY: all zeros is a valid `termios`, which lives through the call that overwrites it.
        unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut mode), 0);
            mode.c_lflag & libc::ECHO != 0
        }
    }

    #[test]
    fn a_bus_error_ends_a_process_with_a_line_that_says_so_and_its_terminal_as_it_was() {
        if std::env::var_os(ENDS).is_some() {
            end_at_bus_errors().unwrap();
            std::mem::forget(crate::terminal::Raw::enter().unwrap());
            assert!(!echoes(
                &std::io::stdin().as_fd().try_clone_to_owned().unwrap()
            ));
            let file = tempfile::tempfile().unwrap();
            file.set_len(8192).unwrap();
            let mapping = vm_memory::MmapRegion::<()>::from_file(
                vm_memory::FileOffset::new(File::try_clone(&file).unwrap(), 0),
                8192,
            );
            let mapping = mapping.unwrap();
            file.set_len(0).unwrap();
            // SAFETY: within the mapping; that there is no page is what this is about.
            let byte = unsafe { mapping.as_ptr().add(5000).read_volatile() };
            panic!("there is no such byte, but {byte}");
        }
        let (_ours, theirs) = terminal();
        let ended = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "signals::tests::a_bus_error_ends_a_process_with_a_line_that_says_so_and_its_terminal_as_it_was",
                "--nocapture",
            ])
            .env(ENDS, "1")
            .stdin(theirs.try_clone().unwrap())
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("orlop: bus error: a file"), "{said}");
        assert!(echoes(&theirs), "the terminal is as it was");
    }
}
