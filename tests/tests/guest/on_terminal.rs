//! A terminal of a story's own, with a command on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use orlop_testbed::host::outcome::shell_status;

use super::{LIMIT, until};

/// A command on a terminal of its own.
pub struct OnTerminal {
    vmm: Child,
    /// The terminal's other end, where its user sits.
    user: File,
    terminal: File,
    before: Termios,
}

impl OnTerminal {
    /// Starts a command on a terminal whose settings are not the usual ones, and waits until a guest has it.
    pub fn start(command: Command) -> Self {
        OnTerminal::of_size(command, 80, 24)
    }

    /// The same, on a terminal that is so large.
    pub fn of_size(mut command: Command, columns: u16, rows: u16) -> Self {
        let pair = openpty(Some(&size(columns, rows)), None).unwrap();
        let (user, terminal) = (File::from(pair.master), File::from(pair.slave));
        let mut before = tcgetattr(&terminal).unwrap();
        before.local_flags.remove(LocalFlags::ECHO);
        before.local_flags.insert(LocalFlags::TOSTOP);
        tcsetattr(&terminal, SetArg::TCSANOW, &before).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let vmm = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let on = OnTerminal {
            vmm,
            user,
            terminal,
            before,
        };
        until("the guest has the terminal", || {
            !tcgetattr(&on.terminal)
                .unwrap()
                .local_flags
                .contains(LocalFlags::ICANON)
        });
        on
    }

    pub fn types(&mut self, keys: &[u8]) {
        self.user.write_all(keys).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.vmm.id().try_into().unwrap()), signal).unwrap();
    }

    /// Has the terminal be so large, and tells the command as a terminal emulator does.
    pub fn resize(&self, columns: u16, rows: u16) {
        // SAFETY: TIOCSWINSZ reads one `winsize`, which lives through the call.
        let done = unsafe {
            let size = size(columns, rows);
            libc::ioctl(self.user.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
        };
        assert_eq!(done, 0);
        self.signal(Signal::SIGWINCH);
    }

    /// Reads what is shown until `text` is among it.
    pub fn shows(&mut self, text: &str) {
        let mut shown = Vec::new();
        let end = Instant::now() + LIMIT;
        while !String::from_utf8_lossy(&shown).contains(text) {
            let said = String::from_utf8_lossy(&shown);
            assert!(Instant::now() < end, "no {text:?} in {said:?}");
            let mut polled = [PollFd::new(self.user.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(100_u8)).unwrap() == 0 {
                continue;
            }
            let mut block = [0; 256];
            let count = self.user.read(&mut block).unwrap();
            shown.extend(&block[..count]);
        }
    }

    /// The exit status, when the terminal is as it was.
    pub fn ended(mut self) -> u8 {
        // What nobody reads must not keep the VMM from ending.
        let reader = self.user.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut { reader }, &mut std::io::sink()));
        let end = Instant::now() + LIMIT;
        let status = loop {
            match self.vmm.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > end => {
                    self.vmm.kill().unwrap();
                    panic!("no end");
                }
                None => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        };
        let now = tcgetattr(self.terminal.as_fd()).unwrap();
        assert_eq!(now, self.before, "the terminal is not as it was");
        shell_status(status)
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
