//! `orlop run` on a terminal: the guest has it, and its user has it back, whatever ends the VM.

mod common;
mod guest;

use common::stage;
use guest::on_terminal::OnTerminal;
use guest::{Guest, Kernel};
use nix::sys::signal::Signal;

#[test]
fn the_terminal_is_as_it_was_when_its_user_leaves() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "sleep 1000");
    let mut vm = OnTerminal::start(guest.command(&[]));
    vm.types(b"\x01x");
    assert_eq!(vm.ended(), 137);
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn the_terminal_is_as_it_was_after_signals() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "sleep 1000");
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
    ] {
        let vm = OnTerminal::start(guest.command(&[]));
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
    let guest = Guest::new(Kernel::Own, script);
    let mut vm = OnTerminal::start(guest.command(&[]));
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
    let vm = OnTerminal::start(guest.command(&[]));
    assert_eq!(vm.ended(), 5);
    drop(guest);
    stage.leaves_nothing();
}
