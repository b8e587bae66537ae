//! The guest's console as a virtio-console (hvc0), and on a pseudo-terminal.

mod common;
mod guest;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::stage;
use guest::on_terminal::OnTerminal;
use guest::{COMMAND_LINE, Guest, Kernel, LIMIT, orlop, until};
use orlop_testbed::containerd::ctr::{Done, Running};
use serde_json::Value;

/// A shell on the virtio-console, which powers the guest off when it exits.
const SHELL: &str = "echo the first words; load virtio_console; until [ -c /dev/hvc0 ]; do sleep 1; done; \
                     { echo ready; sh; } </dev/hvc0 >/dev/hvc0 2>&1; poweroff -f";

/// What a shell does until its terminal is so large. It says so in words that were not typed.
fn waits_for(rows: u16, columns: u16) -> String {
    format!(
        "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 1; done; echo {columns}x$(({rows}))\n"
    )
}

/// The user's end of a pseudo-terminal.
struct User {
    terminal: File,
    /// What is shown and was not looked at yet.
    shown: Vec<u8>,
}

impl User {
    fn open(path: &Path) -> Self {
        let terminal = File::options()
            .read(true)
            .write(true)
            // This process is not to have it as its own.
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
            .unwrap();
        let shown = Vec::new();
        User { terminal, shown }
    }

    fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, behind what was seen before.
    fn sees(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            let mut places = self.shown.windows(text.len());
            if let Some(at) = places.position(|place| place == text.as_bytes()) {
                self.shown.drain(..at + text.len());
                return;
            }
            let mut block = [0; 4096];
            match self.terminal.read(&mut block) {
                Ok(count) => self.shown.extend(&block[..count]),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            let shown = String::from_utf8_lossy(&self.shown);
            assert!(Instant::now() < end, "no {text:?} in {shown:?}");
        }
    }
}

/// Commands with a state directory of the guest's.
fn at_desk(guest: &Guest, mut command: Command) -> Command {
    command.env("XDG_RUNTIME_DIR", guest.path("run"));
    command
}

fn does(guest: &Guest, words: &[&str]) -> Done {
    let mut command = at_desk(guest, orlop());
    command.args(words);
    let done = Running::start(command, &[]).unwrap().wait(LIMIT).unwrap();
    assert_eq!(done.status, 0, "{words:?}: {done:?}");
    done
}

fn inspect(guest: &Guest) -> Value {
    let said = does(guest, &["inspect", "web", "--output", "json"]);
    serde_json::from_str(&said.output()).unwrap()
}

#[test]
fn a_shell_on_hvc0_answers_and_is_as_large_as_the_terminal() {
    let Some(stage) = stage() else { return };
    let hvc0 = COMMAND_LINE.replace("ttyS0", "hvc0");
    // One has the driver as a module, and speaks by the serial port before; the others boot on hvc0.
    for (kernel, cmdline) in [
        (Kernel::Vmlinux, COMMAND_LINE),
        (Kernel::Own, &hvc0),
        (Kernel::Newer, &hvc0),
    ] {
        let guest = Guest::new(kernel, SHELL);
        let arguments = ["--console-device", "virtio", "--cmdline", cmdline];
        let mut vm = OnTerminal::of_size(guest.command(&arguments), 100, 30);
        vm.shows("the first words");
        vm.shows("ready");
        vm.types(b"echo $((6 * 7)) is the answer\n");
        vm.shows("42 is the answer");
        vm.types(waits_for(30, 100).as_bytes());
        vm.shows("100x30");
        vm.resize(132, 43);
        vm.types(waits_for(43, 132).as_bytes());
        vm.shows("132x43");
        vm.types(b"exit\n");
        assert_eq!(vm.ended(), 0, "{kernel:?}");
    }
    stage.leaves_nothing();
}

#[test]
fn a_console_on_a_pty_is_used_by_those_who_come_and_go() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, SHELL);
    let hvc0 = COMMAND_LINE.replace("ttyS0", "hvc0");
    let command = guest.command(&[
        "--detach",
        "--name",
        "web",
        "--console",
        "pty",
        "--console-device",
        "virtio",
        "--cmdline",
        &hvc0,
    ]);
    let started = Running::start(at_desk(&guest, command), &[])
        .unwrap()
        .wait(LIMIT)
        .unwrap();
    assert_eq!(
        (started.status, started.output().as_str()),
        (0, "web\n"),
        "{started:?}"
    );
    let vm = inspect(&guest);
    let pty = PathBuf::from(vm["console"]["pty"].as_str().unwrap());
    assert!(pty.starts_with("/dev/pts"), "{vm}");
    let said = format!("the console of web is {}\n", pty.display());
    assert!(started.error().ends_with(&said), "{started:?}");
    assert_eq!(vm["console"]["device"], "virtio");

    let mut user = User::open(&pty);
    user.sees("ready");
    user.types("echo $((6 * 7)) is the answer\n");
    user.sees("42 is the answer");
    drop(user);

    // Another comes by the control socket, with a terminal, and leaves.
    let mut command = at_desk(&guest, orlop());
    command.args(["console", "web"]);
    let mut console = OnTerminal::of_size(command, 90, 25);
    console.types(waits_for(25, 90).as_bytes());
    console.shows("90x25");
    console.resize(91, 26);
    console.types(waits_for(26, 91).as_bytes());
    console.shows("91x26");
    console.types(b"\x01d");
    assert_eq!(console.ended(), 0);
    assert_eq!(inspect(&guest)["state"], "running");

    // The guest boots again, and both are at its console as before.
    let mut user = User::open(&pty);
    user.types("echo back again; reboot -f\n");
    user.sees("ready");
    user.types("echo $((7 * 7)) is another; stty size\n");
    user.sees("49 is another");
    user.sees("26 91");
    user.types("exit\n");
    until("the guest has powered off", || {
        does(&guest, &["ps", "--output", "json"]).output() == "[]\n"
    });
    until("its process has ended", || {
        common::processes("orlop").is_empty()
    });
    drop((user, guest));
    stage.leaves_nothing();
}

#[test]
fn a_mebibyte_of_output_arrives_whole() {
    let Some(stage) = stage() else { return };
    let script = "stty raw -echo </dev/hvc0; { seq 100000 249796; echo that was it; } >/dev/data; \
                  cat /dev/data >/dev/hvc0; poweroff -f";
    let guest = Guest::new(Kernel::Own, script);
    let lines = (100000..=249796).map(|line| format!("{line}\n"));
    let expected = lines.collect::<String>() + "that was it\n";
    assert!(expected.len() > 1 << 20);
    let file = guest.path("console");
    // The command line is the one that names hvc0 by itself.
    let to_file = guest.run_with(&[
        "--console-device",
        "virtio",
        "--console",
        &format!("file={}", file.display()),
    ]);
    assert_eq!(to_file.status, 0, "{to_file:?}");
    assert!(std::fs::read_to_string(file).unwrap().contains(&expected));
    let to_pipe = guest.run_with(&["--console-device", "virtio", "--console", "stdio"]);
    assert_eq!(to_pipe.status, 0, "{}", to_pipe.error());
    assert!(to_pipe.output().contains(&expected));
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_whose_console_nobody_reads_goes_on() {
    let Some(stage) = stage() else { return };
    let script =
        "seq 1 500000 >/dev/data; { stty raw; cat /dev/data; } <>/dev/hvc0 >&0; poweroff -f";
    let guest = Guest::new(Kernel::Own, script);
    let command = guest.command(&["--console", "pty", "--console-device", "virtio"]);
    let vm = Running::start(command, &[]).unwrap();
    let ended = vm.wait(LIMIT).unwrap();
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(
        ended.error().contains("bytes of output were dropped"),
        "{ended:?}"
    );
    drop(guest);
    stage.leaves_nothing();
}
