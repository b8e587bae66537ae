//! What cannot be given to a guest, and what is said then.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::host::devices::{DISK, SIBLINGS};

use super::guest::{Guest, Kernel, LIMIT};
use super::pci;
use super::stage;

/// The VMM for a user who may lock 8 MiB and has no way to more.
fn with_little_locked_memory() -> Command {
    let mut command = Command::new("prlimit");
    command.args(["--memlock=8388608:8388608", "setpriv"]);
    for set in ["bounding-set", "inh-caps"] {
        command.arg(format!("--{set}=-ipc_lock,-sys_resource"));
    }
    command.arg(super::guest::orlop().get_program());
    command
}

#[test]
fn what_cannot_be_given_away_is_told_with_what_to_do() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "while :; do sleep 1; done");
    let refused = |device: &str, words: &[&str]| {
        let done = guest.run_with(&["--device", device]);
        let error = done.error();
        assert_ne!(done.status, 0, "{device}: {error}");
        for word in words {
            assert!(error.contains(word), "{device}: {error}");
        }
    };
    refused("0000:7f:00.0", &["0000:7f:00.0", "orlop pci ls"]);
    refused("nonsense", &["0000:65:00.0"]);
    pci::give(DISK, Some("nvme"));
    refused(DISK, &["driver nvme", "orlop pci bind"]);
    pci::give(DISK, Some("vfio-pci"));
    let done = guest.run_by(with_little_locked_memory(), &["--device", DISK]);
    let error = done.error();
    assert_ne!(done.status, 0, "{error}");
    for word in ["may not lock as much", "ulimit -l", "LimitMEMLOCK="] {
        assert!(error.contains(word), "{error}");
    }
    let [first, second] = SIBLINGS;
    pci::give(first, Some("vfio-pci"));
    pci::give(second, Some("snd_hda_intel"));
    refused(first, &[first, second, "snd_hda_intel"]);
    pci::give(second, Some("vfio-pci"));
    let console = format!("file={}", guest.path("console").display());
    let device = format!("--device={DISK}");
    let socket = guest.path("control");
    let socket = ["--api-socket", socket.to_str().unwrap()];
    let running = guest.start(&["--console", &console, socket[0], socket[1], &device]);
    super::guest::until("the first VM has it", || {
        std::fs::read_to_string(guest.path("console")).is_ok() && pci::is_open(DISK, running.id())
    });
    refused(DISK, &["in use", "group"]);
    let unbound = super::guest::orlop()
        .args(["pci", "unbind", DISK])
        .output()
        .unwrap();
    let said = String::from_utf8(unbound.stderr).unwrap();
    assert!(
        !unbound.status.success() && said.contains("in use"),
        "{said}"
    );
    kill(Pid::from_raw(running.id().cast_signed()), Signal::SIGKILL).unwrap();
    assert_eq!(running.wait(LIMIT).unwrap().status, 137);
    drop(guest);
    for address in [DISK, first, second] {
        pci::release(address);
    }
    stage.leaves_nothing();
}
