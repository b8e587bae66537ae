//! A VM in the background, as it is steered from the command line.

mod common;
mod guest;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{processes, stage};
use guest::{Guest, Kernel, LIMIT, orlop, until};
use orlop_testbed::containerd::ctr::{Done, Running};
use orlop_testbed::stories::size;
use serde_json::Value;

/// A state directory of its own, and the commands that find their VMs there.
struct Desk {
    run: PathBuf,
}

impl Desk {
    fn of(guest: &Guest) -> Self {
        Desk {
            run: guest.path("run"),
        }
    }

    /// Starts `guest` in the background.
    fn run(&self, guest: &Guest, name: &str, arguments: &[&str]) -> Done {
        let mut line = vec!["--detach", "--name", name, "--console", "null"];
        line.extend(arguments);
        let mut command = guest.command(&line);
        command.env("XDG_RUNTIME_DIR", &self.run);
        Running::start(command, &[]).unwrap().wait(LIMIT).unwrap()
    }

    fn start(&self, words: &[&str], input: &[u8]) -> Running {
        let mut command = orlop();
        command.args(words).env("XDG_RUNTIME_DIR", &self.run);
        Running::start(command, input).unwrap()
    }

    /// Runs a command to its end.
    fn orlop(&self, words: &[&str]) -> Done {
        self.start(words, &[]).wait(LIMIT).unwrap()
    }

    /// Runs a command that does as it is told: its output.
    fn does(&self, words: &[&str]) -> String {
        let done = self.orlop(words);
        assert_eq!(done.status, 0, "{words:?}: {done:?}");
        done.output()
    }

    fn inspect(&self, name: &str) -> Value {
        serde_json::from_str(&self.does(&["inspect", name, "--output", "json"])).unwrap()
    }

    /// What the guest has written of late.
    fn shown(&self, name: &str) -> String {
        // The command ends with the VM; it is killed when it has said what it has to say.
        let console = self.start(&["console", name], &[]);
        match console.wait(Duration::from_secs(2)) {
            Ok(done) => done.output(),
            Err(so_far) => so_far.to_string(),
        }
    }

    /// Files in the state directory.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.run.join("orlop/vm"))
            .into_iter()
            .flatten();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

#[test]
fn a_vm_in_the_background_is_steered_by_its_name() {
    let Some(stage) = stage() else { return };
    let script = "load button; load evdev; echo the guest listens; \
                  (head -c 24 /dev/input/event0 >/dev/null; poweroff -f) & \
                  stty -echo; while read line; do echo \"heard $line\"; done";
    let guest = Guest::new(Kernel::Own, script);
    let desk = Desk::of(&guest);
    let started = desk.run(&guest, "web", &["--cpus", "2"]);
    assert_eq!(
        (started.status, started.output().as_str()),
        (0, "web\n"),
        "{started:?}"
    );
    let events = desk.start(&["events", "web", "--output", "json"], &[]);
    let vm = desk.inspect("web");
    assert_eq!(
        (&vm["state"], &vm["vcpus"]),
        (&"running".into(), &2.into()),
        "{vm}"
    );
    until("the guest listens", || {
        desk.shown("web").contains("the guest listens")
    });

    // The console, from two terminals.
    let typed = desk.start(&["console", "web"], b"one\n");
    let other = desk.start(&["console", "web"], b"two\n");
    until("the guest has heard both", || {
        let shown = desk.shown("web");
        shown.contains("heard one") && shown.contains("heard two")
    });

    assert_eq!(desk.does(&["pause", "web"]), "web\n");
    assert_eq!(desk.inspect("web")["state"], "paused");
    let refused = desk.orlop(&["stop", "web"]);
    assert_eq!(refused.status, 1);
    assert!(refused.error().contains("resume it first"), "{refused:?}");
    assert_eq!(desk.does(&["resume", "web"]), "web\n");

    let stats = desk.does(&["stats", "web", "--no-stream"]);
    assert!(
        stats.contains("virtio-rng") && stats.contains("io_out"),
        "{stats}"
    );
    let before = desk.inspect("web");
    desk.does(&["reset", "web"]);
    until("the guest has booted again", || {
        let again = desk.shown("web");
        again.matches("the guest listens").count() == 2
    });
    assert_eq!(
        desk.inspect("web")["pid"],
        before["pid"],
        "the same process"
    );

    // The script says that it listens just before it does.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(desk.does(&["stop", "web", "--timeout", "60s"]), "web\n");
    for console in [typed, other] {
        assert_eq!(console.wait(LIMIT).unwrap().status, 0);
    }
    let told = events.wait(LIMIT).unwrap();
    let told: Vec<Value> = told
        .output()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<_> = told
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    // Whether the first boot is among them depends on who came first.
    let kinds = kinds.strip_prefix(&["booted"]).unwrap_or(&kinds);
    let expected = [
        "paused",
        "resumed",
        "reset",
        "booted",
        "power-button",
        "ended",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(told.last().unwrap()["message"], "the guest powered off");
    assert_eq!(desk.files(), [""; 0]);
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_guest_that_does_not_power_off_is_killed() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "sleep 1000");
    let desk = Desk::of(&guest);
    for name in ["db", "web"] {
        assert_eq!(desk.run(&guest, name, &["--memory", "128M"]).status, 0);
    }
    let stopped = desk.orlop(&["stop", "-t", "1s", "db", "nobody", "web"]);
    assert_eq!(stopped.output(), "db\nweb\n");
    assert_eq!(stopped.status, 1);
    assert!(stopped.error().contains("no VM nobody runs"), "{stopped:?}");
    assert_eq!(desk.does(&["ps", "--output", "json"]), "[]\n");
    assert_eq!(desk.files(), [""; 0]);
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn what_cannot_run_in_the_background_is_said_in_the_foreground() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "sleep 1000");
    let desk = Desk::of(&guest);
    for (arguments, status, words) in [
        (["--disk", "path=/nonexistent"], 1, "/nonexistent"),
        (["--memory", "1M"], 2, "--memory"),
    ] {
        let done = desk.run(&guest, "web", &arguments);
        assert_eq!(
            (done.status, done.output().as_str()),
            (status, ""),
            "{done:?}"
        );
        assert!(done.error().contains(words), "{done:?}");
    }
    assert_eq!(desk.run(&guest, "web", &[]).status, 0);
    let taken = desk.run(&guest, "web", &[]);
    assert_eq!(taken.status, 1);
    assert!(taken.error().contains("web.sock"), "{taken:?}");
    desk.does(&["kill", "web"]);
    assert_eq!(desk.files(), [""; 0]);
    assert!(processes("orlop").is_empty());
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_vm_that_ends_badly_in_the_background_leaves_word_of_it() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(
        Kernel::Vmlinux,
        "load pvpanic_mmio; echo c >/proc/sysrq-trigger",
    );
    let desk = Desk::of(&guest);
    assert_eq!(desk.run(&guest, "web", &[]).status, 0);
    until("the VM has ended", || {
        desk.does(&["ps", "--output", "json"]) == "[]\n"
    });
    until("its process has ended", || processes("orlop").is_empty());
    assert_eq!(desk.files(), ["web.log"]);
    let log = fs::read_to_string(desk.run.join("orlop/vm/web.log")).unwrap();
    assert!(log.contains("kernel panicked"), "{log}");
    drop(guest);
    stage.leaves_nothing();
}

#[test]
fn a_pause_of_ten_seconds_is_nothing_to_the_guest() {
    let Some(stage) = stage() else { return };
    let bytes = size(4 << 20, 16 << 20);
    let script = format!(
        "load virtio_blk; echo 10 >/proc/sys/kernel/watchdog_thresh; echo 1 >/proc/sys/kernel/softlockup_panic; \
                  for round in 1 2 3 4 5 6; do \
                  head -c {bytes} /dev/urandom >/dev/data || break; \
                  dd if=/dev/data of=/dev/vda bs=1M conv=fsync,notrunc 2>/dev/null || echo write failed; \
                  echo 3 >/proc/sys/vm/drop_caches; \
                  [ $(head -c {bytes} /dev/vda | md5sum | head -c 32) = $(md5sum </dev/data | head -c 32) ] \
                  && echo round $round is equal || echo round $round differs; done; \
                  dmesg | grep -iE 'lockup|stall|I/O error|hung' || echo no complaint; poweroff -f"
    );
    let guest = Guest::new(Kernel::Vmlinux, &script);
    let desk = Desk::of(&guest);
    let (image, console) = (guest.path("image"), guest.path("console"));
    fs::write(&image, vec![0; bytes as usize]).unwrap();
    let mut command = guest.command(&[
        "--detach",
        "--name",
        "web",
        "--cpus",
        "2",
        "--disk",
        &format!("path={}", image.display()),
        "--console",
        &format!("file={}", console.display()),
    ]);
    command.env("XDG_RUNTIME_DIR", &desk.run);
    assert_eq!(
        Running::start(command, &[])
            .unwrap()
            .wait(LIMIT)
            .unwrap()
            .status,
        0
    );
    let said = || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
    let requests = || {
        let vm = desk.inspect("web");
        let disk = vm["devices"].as_array().unwrap().iter();
        let disk = disk.clone().find(|device| device["kind"] == "virtio-blk");
        disk.unwrap()["counters"].clone()
    };
    until("the guest writes", || said().contains("round 1"));
    desk.does(&["pause", "web"]);
    // What is in flight may still be answered.
    std::thread::sleep(Duration::from_secs(1));
    let (before, shown) = (requests(), said());
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(requests(), before, "a paused guest reads or writes");
    assert_eq!(said(), shown, "a paused guest speaks");
    desk.does(&["resume", "web"]);
    until("the guest has ended", || {
        desk.does(&["ps", "--output", "json"]) == "[]\n"
    });
    let said = said();
    for round in 1..=6 {
        assert!(said.contains(&format!("round {round} is equal")), "{said}");
    }
    assert!(
        said.contains("no complaint") && !said.contains("failed"),
        "{said}"
    );
    drop(guest);
    stage.leaves_nothing();
}
