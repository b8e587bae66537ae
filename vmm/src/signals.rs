//! Signals that are waited for rather than handled, and the one that cannot be.

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

/// Has a bus error end this process with a line that says what it means. It comes where a page of mapped memory cannot be had: the file behind it was made shorter,
/// or cannot be read.
///
/// # Errors
/// When the kernel does not take the handler.
pub fn end_at_bus_errors() -> io::Result<()> {
    extern "C" fn end(_: libc::c_int) {
        const WORDS: &[u8] = b"orlop: bus error: a file that is read as memory (kernel, initramfs, persistent memory or RAM) was made shorter, or cannot be read; \
            leave it alone while a VM uses it, and look for errors of its disk\n";
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
    use std::process::Command;

    use super::*;

    /// Set for the process that is to end.
    const ENDS: &str = "ORLOP_TEST_BUS_ERROR";

    #[test]
    fn a_bus_error_ends_a_process_with_a_line_that_says_so() {
        if std::env::var_os(ENDS).is_some() {
            end_at_bus_errors().unwrap();
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
        let ended = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "signals::tests::a_bus_error_ends_a_process_with_a_line_that_says_so",
                "--nocapture",
            ])
            .env(ENDS, "1")
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("orlop: bus error: a file"), "{said}");
    }
}
