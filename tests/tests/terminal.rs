//! `orlop run` on a terminal: the guest has it, and its user has it back, whatever ends the VM.

mod common;
mod guest;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::time::Instant;

use common::stage;
use guest::{Guest, Kernel, LIMIT, until};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use orlop_testbed::host::outcome::shell_status;

/// A VM on a terminal of its own.
struct OnTerminal {
    vmm: Child,
    /// The terminal's other end, where its user sits.
    user: File,
    terminal: File,
    before: Termios,
}

impl OnTerminal {
    /// Starts `guest` on a terminal whose settings are not the usual ones, and waits until the guest has it.
    fn start(guest: &Guest, arguments: &[&str]) -> Self {
        let pair = openpty(None, None).unwrap();
        let (user, terminal) = (File::from(pair.master), File::from(pair.slave));
        let mut before = tcgetattr(&terminal).unwrap();
        before.local_flags.remove(LocalFlags::ECHO);
        before.local_flags.insert(LocalFlags::TOSTOP);
        tcsetattr(&terminal, SetArg::TCSANOW, &before).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let mut command = guest.command(arguments);
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

    fn types(&mut self, keys: &[u8]) {
        self.user.write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.vmm.id().try_into().unwrap()), signal).unwrap();
    }

    /// Reads what is shown until `text` is among it.
    fn shows(&mut self, text: &str) {
        let mut shown = Vec::new();
        let end = Instant::now() + LIMIT;
        while !String::from_utf8_lossy(&shown).contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {shown:?}");
            let mut block = [0; 256];
            let count = self.user.read(&mut block).unwrap();
            shown.extend(&block[..count]);
        }
    }

    /// The exit status, when the terminal is as it was.
    fn ended(mut self) -> u8 {
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

#[test]
fn the_terminal_is_as_it_was_when_its_user_leaves() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Vmlinux, "sleep 1000");
    let mut vm = OnTerminal::start(&guest, &[]);
    vm.types(b"\x01x");
    assert_eq!(vm.ended(), 137);
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn the_terminal_is_as_it_was_after_signals() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Vmlinux, "sleep 1000");
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
    ] {
        let vm = OnTerminal::start(&guest, &[]);
        vm.signal(signal);
        assert_eq!(vm.ended(), 137, "{signal}");
    }
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn the_guest_gets_what_is_typed_and_the_terminal_is_as_it_was_after_power_off() {
    let Some(stage) = stage() else { return };
    let script = "stty raw -echo; echo ready; head -c 3 | od -An -tx1; poweroff -f";
    let guest = Guest::new(Kernel::Vmlinux, script);
    let mut vm = OnTerminal::start(&guest, &[]);
    vm.shows("ready");
    // Ctrl-C and Ctrl-Z are the guest's, and so is what comes of two Ctrl-A.
    vm.types(b"\x03\x1a\x01\x01");
    vm.shows("03 1a 01");
    assert_eq!(vm.ended(), 0);
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn the_terminal_is_as_it_was_after_a_crash_of_the_guest() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(
        Kernel::Vmlinux,
        "load pvpanic_mmio; echo c >/proc/sysrq-trigger",
    );
    let vm = OnTerminal::start(&guest, &[]);
    assert_eq!(vm.ended(), 5);
    drop(guest);
    stage.leaves_nothing();
}
