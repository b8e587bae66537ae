//! However a VM ends, and at whatever moment, nothing of it is left.

mod common;
mod guest;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::stage;
use guest::{Guest, Kernel, LIMIT, orlop, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::stories::size;

/// How a VM is made to end.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The VMM gets a signal, so many tenths of a second after it was started.
    Signal(Signal, u32),
    PowerOff,
    Panic,
}

impl Way {
    /// What the guest reads as the word after `way=` on its command line.
    fn word(self) -> &'static str {
        match self {
            Way::Signal(..) => "stay",
            Way::PowerOff => "off",
            Way::Panic => "panic",
        }
    }

    /// The statuses that tell of it.
    fn statuses(self) -> &'static [u8] {
        match self {
            // The signal's own number is that of a VMM that has not come to wait for it.
            Way::Signal(Signal::SIGTERM, _) => &[137, 143],
            Way::Signal(..) => &[137],
            Way::PowerOff => &[0],
            Way::Panic => &[5],
        }
    }

    /// Whether a VMM with this status was cut off by its signal. It left its socket then, or that of one before it.
    fn cut_off(self, status: u8) -> bool {
        matches!(self, Way::Signal(Signal::SIGKILL, _)) || status == 143
    }
}

/// Killed and asked to end, at moments from before the first instruction to a running guest, and ended by the guest: fifty of them, or every
/// fifth five.
fn ways() -> impl Iterator<Item = Way> {
    let step = size(5, 1) as usize;
    (0..10).step_by(step).flat_map(|round| {
        [
            Way::Signal(Signal::SIGKILL, 2 * round),
            Way::Signal(Signal::SIGKILL, 40 + 3 * round),
            Way::Signal(Signal::SIGTERM, 4 * round),
            Way::PowerOff,
            Way::Panic,
        ]
    })
}

/// What is in a directory that may not be there.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn many_boots_and_ends_leave_nothing() {
    let Some(stage) = stage() else { return };
    let script = "load pvpanic_mmio; case $(cat /proc/cmdline) in \
                  *way=off*) poweroff -f;; *way=panic*) echo c >/proc/sysrq-trigger;; esac; sleep 1000";
    let guest = Guest::new(Kernel::Vmlinux, script);
    let (image, vsock, run) = (guest.path("image"), guest.path("vsock"), guest.path("run"));
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let disk = format!("path={}", image.display());
    let vsock = format!("socket={}", vsock.display());
    let sockets = run.join("orlop/vm");
    for (number, way) in ways().enumerate() {
        // The image and the vsock's path are the same each time: a lock or a live socket would refuse the next VM.
        let line = format!("{} way={}", guest::COMMAND_LINE, way.word());
        let mut command = guest.command(&[
            "--disk",
            &disk,
            "--vsock",
            &vsock,
            "--memory",
            "128M",
            "--cmdline",
            &line,
        ]);
        command.env("XDG_RUNTIME_DIR", &run);
        let running = Running::start(command, &[]).unwrap();
        if let Way::Signal(signal, tenths) = way {
            std::thread::sleep(Duration::from_millis(100) * tenths);
            let vmm = Pid::from_raw(running.id().try_into().unwrap());
            kill(vmm, signal).unwrap();
        }
        let ended = running.wait(LIMIT).unwrap();
        let expected = way.statuses().contains(&ended.status);
        assert!(expected, "{number}: {way:?}: {ended:?}");
        let left = entries(&sockets);
        let most = usize::from(way.cut_off(ended.status));
        assert!(left.len() <= most, "{number}: {way:?}: {left:?}");
    }
    let list = |format| {
        let mut ps = orlop();
        ps.args(["ps", "--output", format])
            .env("XDG_RUNTIME_DIR", &run);
        Running::start(ps, &[]).unwrap().wait(LIMIT).unwrap()
    };
    assert_eq!(list("json").output(), "[]\n");
    assert_eq!(entries(&sockets), [""; 0], "a killed VM's socket is left");
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn vms_that_run_are_listed() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Vmlinux, "sleep 1000");
    let run = guest.path("run");
    let start = |name, cpus| {
        let mut command = guest.command(&["--name", name, "--cpus", cpus]);
        command.env("XDG_RUNTIME_DIR", &run);
        Running::start(command, &[]).unwrap()
    };
    let list = || {
        let mut ps = orlop();
        ps.args(["ps", "--output", "json"])
            .env("XDG_RUNTIME_DIR", &run);
        let ended = Running::start(ps, &[]).unwrap().wait(LIMIT).unwrap();
        serde_json::from_slice::<serde_json::Value>(&ended.stdout).unwrap()
    };
    let vms = [("db", "1"), ("web", "2")].map(|(name, cpus)| start(name, cpus));
    until("both VMs are listed", || {
        list().as_array().is_some_and(|rows| rows.len() == 2)
    });
    let rows = list();
    for (row, (name, cpus)) in [("db", 1), ("web", 2)].into_iter().enumerate() {
        assert_eq!(rows[row]["name"], name, "{rows}");
        assert_eq!(rows[row]["state"], "running", "{rows}");
        assert_eq!(rows[row]["vcpus"], cpus, "{rows}");
        assert_eq!(rows[row]["pid"], vms[row].id(), "{rows}");
    }
    let taken = start("web", "1").wait(LIMIT).unwrap();
    assert_eq!(taken.status, 1, "{taken:?}");
    assert!(taken.error().contains("web.sock"), "{taken:?}");
    for vm in vms {
        kill(Pid::from_raw(vm.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(vm.wait(LIMIT).unwrap().status, 137);
    }
    assert_eq!(list(), serde_json::json!([]));
    drop(guest);
    stage.leaves_nothing();
}
