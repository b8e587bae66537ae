//! The guest's console as a virtio-console (hvc0).

mod common;
mod guest;

use common::stage;
use guest::on_terminal::OnTerminal;
use guest::{COMMAND_LINE, Guest, Kernel};

/// A shell on the virtio-console, which powers the guest off when it exits.
const SHELL: &str = "echo the first words; load virtio_console; until [ -c /dev/hvc0 ]; do sleep 1; done; \
                     { echo ready; sh; } </dev/hvc0 >/dev/hvc0 2>&1; poweroff -f";

/// What a shell does until its terminal is so large. It says so in words that were not typed.
fn waits_for(rows: u16, columns: u16) -> String {
    format!(
        "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 1; done; echo {columns}x$(({rows}))\n"
    )
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
