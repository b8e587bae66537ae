//! A pseudo-terminal as a console's other end: who opens its path is at the console, for as long as they like.
//!
//! Our side keeps the terminal's own end open, so that there is no hangup when a user goes, and what the guest writes waits for the next
//! one as far as the kernel has room. Beyond that it is dropped. A hangup can come all the same, when a session that had the terminal as
//! its own ends; the terminal is then opened anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use super::Console;
use super::output::Dropped;
use crate::devices::virtio::StartError;
use crate::devices::virtio::worker::{Events, Wake, Worker};
use crate::terminal;

/// How long output may wait for a user who is slow. When one was slower than that, nothing waits until they read again.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long to wait for the guest to read what it has, and for a terminal that cannot be opened anew.
const PAUSE: Duration = Duration::from_millis(20);
/// What is read at once.
const CHUNK: usize = 1024;

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// Our side. Non-blocking.
    ours: File,
    /// The end that users have, in raw mode. Held so that it stays open.
    theirs: Mutex<File>,
    path: PathBuf,
}

impl Pty {
    /// Makes one.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn open() -> io::Result<Self> {
        let ours = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open("/dev/ptmx")?;
        let unlocked: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int, which lives through the call.
        checked(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
        let mut number: libc::c_uint = 0;
        // SAFETY: TIOCGPTN writes one unsigned int, which lives through the call.
        checked(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
        let theirs = Mutex::new(open_theirs(&ours)?);
        let path = PathBuf::from(format!("/dev/pts/{number}"));
        Ok(Pty { ours, theirs, path })
    }

    /// What users open.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the users' end anew, after a hangup.
    fn mend(&self) -> io::Result<()> {
        let theirs = open_theirs(&self.ours)?;
        *self.theirs.lock().unwrap_or_else(PoisonError::into_inner) = theirs;
        Ok(())
    }

    /// Whether our side takes something within `time`.
    fn takes(&self, time: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: self.ours.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` lives through the call, and is one.
        let count = unsafe { libc::poll(&raw mut poll, 1, time.as_millis() as libc::c_int) };
        count > 0 && poll.revents & libc::POLLOUT != 0
    }
}

/// The end that users have, without a look at the file system (TIOCGPTPEER, Linux 4.13), in raw mode.
fn open_theirs(ours: &File) -> io::Result<File> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER has a number as its argument, and touches no memory of ours.
    let fd = checked(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the descriptor was just opened, and nobody else has it.
    let theirs = unsafe { File::from_raw_fd(fd) };
    terminal::make_raw(&theirs)?;
    Ok(theirs)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Where output goes: to whoever is there, without ever waiting for long.
#[derive(Debug)]
pub struct Sink {
    pty: Arc<Pty>,
    dropped: Dropped,
    /// Nobody has read for so long that nothing waits any more.
    stuck: bool,
}

impl Sink {
    /// For the output of a console, which is counted where it is dropped.
    pub fn new(pty: Arc<Pty>, dropped: Dropped) -> Self {
        Sink {
            pty,
            dropped,
            stuck: false,
        }
    }
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.pty.ours).write(data) {
                Ok(count) if count > 0 => {
                    self.stuck = false;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && !self.stuck
                        && self.pty.takes(PATIENCE) => {}
                // There is no room, or there was a hangup.
                _ => {
                    self.stuck = true;
                    self.dropped.add(data.len());
                    return Ok(data.len());
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the guest what users type, until this is dropped or the console has gone.
///
/// # Errors
/// When there is no thread to be had.
pub fn listen(pty: Arc<Pty>, console: Weak<Console>) -> Result<Worker<()>, StartError> {
    Worker::spawn("console-pty", move |events| {
        if let Err(error) = feed(&pty, &console, events) {
            log::warn!(
                "console: {} is no longer read: {error}",
                pty.path().display()
            );
        }
    })
}

fn feed(pty: &Pty, console: &Weak<Console>, events: &mut Events) -> io::Result<()> {
    events.add(&pty.ours, EventSet::IN, 0)?;
    let mut typed = Vec::new();
    loop {
        // While the guest has not taken all of it, nothing more is read.
        let (interest, timeout) = match typed.is_empty() {
            true => (EventSet::IN, -1),
            false => (EventSet::empty(), PAUSE.as_millis() as i32),
        };
        events.modify(&pty.ours, interest, 0)?;
        let mut hangup = false;
        for wake in events.wait(timeout) {
            match wake {
                Wake::Stop => return Ok(()),
                Wake::Ready(_, ready) => hangup |= ready.contains(EventSet::HANG_UP),
            }
        }
        if hangup && pty.mend().is_err() {
            std::thread::sleep(PAUSE);
        }
        if typed.is_empty() {
            let mut chunk = [0; CHUNK];
            // It is non-blocking: nothing there, and a hangup, are no end.
            let count = (&pty.ours).read(&mut chunk).unwrap_or(0);
            typed.extend(chunk.iter().take(count));
        }
        let Some(console) = console.upgrade() else {
            return Ok(());
        };
        let rest = console.feed(&typed).len();
        typed.drain(..typed.len() - rest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::output::Writer;
    use super::*;
    use crate::bus::Device as _;
    use crate::config::{ConsoleConfig, ConsoleDevice};

    const LIMIT: Duration = Duration::from_secs(20);

    struct OnPty {
        console: Arc<Console>,
        path: PathBuf,
        _reader: Worker<()>,
        _writer: Writer,
    }

    impl OnPty {
        fn new() -> Self {
            let opened = Console::open(&ConsoleConfig::Pty, ConsoleDevice::Virtio);
            let (console, writer) = opened.unwrap();
            let pty = console.pty().unwrap().clone();
            let path = pty.path().to_owned();
            assert_eq!(console.path(), Some(&*path));
            OnPty {
                _reader: listen(pty, Arc::downgrade(&console)).unwrap(),
                console,
                path,
                _writer: writer,
            }
        }

        fn says(&self, text: &[u8]) {
            for byte in text {
                self.console.write(0, &[*byte]);
            }
        }

        /// What a user does who comes.
        fn user(&self) -> File {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
                .open(&self.path)
                .unwrap()
        }

        /// Waits until the guest has been given `text`.
        fn hears(&self, text: &[u8]) {
            let end = Instant::now() + LIMIT;
            let mut heard = Vec::new();
            while heard != text {
                assert!(Instant::now() < end, "{heard:?}");
                heard.extend(self.console.line.as_ref().unwrap().take(16));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Reads until `text` is the last of it.
    fn sees(mut user: &File, text: &[u8]) -> Vec<u8> {
        let end = Instant::now() + LIMIT;
        let mut seen = Vec::new();
        while !seen.ends_with(text) {
            assert!(Instant::now() < end, "{:?}", String::from_utf8_lossy(&seen));
            let mut block = [0; 4096];
            match user.read(&mut block) {
                Ok(count) => seen.extend(&block[..count]),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        seen
    }

    #[test]
    fn users_come_and_go() {
        let on = OnPty::new();
        on.says(b"before\r\n");
        for round in 0..3 {
            let mut user = on.user();
            if round == 0 {
                assert_eq!(sees(&user, b"before\r\n"), b"before\r\n", "and as it is");
            }
            on.says(b"login: ");
            sees(&user, b"login: ");
            user.write_all(b"root\r\x03\x04\x1a").unwrap();
            on.hears(b"root\r\x03\x04\x1a");
        }
    }

    #[test]
    fn one_who_does_not_read_holds_nobody_up_and_hears_what_comes_when_they_do() {
        let on = OnPty::new();
        let user = on.user();
        let mut listener = on.console.listen();
        for _ in 0..64 {
            on.says(&[b'x'; 4096]);
        }
        assert!(on.console.output.dropped().count() > 0);
        // Those who look on are not held up either.
        let end = Instant::now() + LIMIT;
        let mut heard = Vec::new();
        while !heard.ends_with(b"!") {
            assert!(Instant::now() < end, "nobody hears");
            on.says(b"!");
            match listener.live.try_recv() {
                Ok(piece) => heard = piece.to_vec(),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        let reading = std::thread::spawn(move || sees(&user, b"again"));
        while !reading.is_finished() {
            on.says(b"again");
            std::thread::sleep(Duration::from_millis(20));
        }
        reading.join().unwrap();
    }

    #[test]
    fn a_hangup_is_mended() {
        let on = OnPty::new();
        let user = on.user();
        // What the kernel does when the session whose terminal it is ends.
        on.says(b"1");
        sees(&user, b"1");
        *on.console.pty().unwrap().theirs.lock().unwrap() = File::open("/dev/null").unwrap();
        drop(user);
        let end = Instant::now() + LIMIT;
        loop {
            let user = on.user();
            on.says(b"2");
            std::thread::sleep(Duration::from_millis(20));
            let mut block = [0; 16];
            if (&user).read(&mut block).is_ok_and(|count| count > 0) {
                break;
            }
            assert!(Instant::now() < end, "nothing comes any more");
        }
        on.user().write_all(b"typed\r").unwrap();
        on.hears(b"typed\r");
    }

    #[test]
    fn a_guest_that_does_not_read_holds_the_user_back() {
        let on = OnPty::new();
        let mut user = on.user();
        let mut typed = 0;
        let end = Instant::now() + LIMIT;
        // Until the terminal and the line are full.
        let mut full = 0;
        while full < 20 {
            assert!(Instant::now() < end, "{typed} bytes are taken");
            match user.write(&[b'x'; 1024]) {
                Ok(count) => {
                    typed += count;
                    full = 0;
                }
                Err(_) => full += 1,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut heard = 0;
        while heard < typed {
            assert!(Instant::now() < end, "{heard} of {typed} bytes are heard");
            heard += on.console.line.as_ref().unwrap().take(4096).len();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(heard, typed);
    }
}
