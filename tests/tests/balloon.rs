//! What a guest has freed is the host's again, as its guest and its host see it.

mod common;
mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::stage;
use guest::backend::Backend;
use guest::{Guest, Kernel, control, orlop};
use orlop_proto::vmm::v1::{DescribeRequest, KillRequest};
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::stories::size;

/// How long a guest may take to fill its memory on an emulated machine that is busy with other things.
const LONG: Duration = Duration::from_secs(300);
/// How long what was freed may take to be the host's; where code is not emulated it is seconds.
const SOON: Duration = Duration::from_secs(60);

/// Waits until something holds; says how long that took.
fn within(limit: Duration, what: &str, holds: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(200));
    }
    start.elapsed()
}

/// A number of MiB in a process's status, such as `VmRSS`.
fn mib(id: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kib = line.unwrap().trim_matches(|c: char| !c.is_ascii_digit());
    kib.parse::<u64>().unwrap() >> 10
}

/// A guest with a balloon that runs.
struct Vm {
    guest: Guest,
    running: Running,
}

impl Vm {
    fn start(kernel: Kernel, script: &str, arguments: &[&str]) -> Self {
        let script = format!(
            "load virtio_balloon; mkdir /dev/data; mount -t tmpfs -o size=90% data /dev/data; {script}; \
             while :; do sleep 60; done"
        );
        let guest = Guest::new(kernel, &script);
        let (console, socket) = (guest.path("console"), guest.path("control"));
        let console = format!("file={}", console.display());
        let mut line = vec!["--console", &console, "--api-socket"];
        line.push(socket.to_str().unwrap());
        line.extend(arguments);
        let running = guest.start(&line);
        guest::until("the VM can be asked", || socket.exists());
        Vm { guest, running }
    }

    fn says(&self, line: &str) {
        within(LONG, line, || self.said().contains(line));
    }

    fn said(&self) -> String {
        let said = fs::read(self.guest.path("console")).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// The balloon's counters.
    fn counters(&self) -> BTreeMap<String, u64> {
        let described = control(&self.guest.path("control"), async |mut vm| {
            vm.describe(DescribeRequest {}).await
        });
        let mut devices = described.unwrap().devices.into_iter();
        let balloon = devices.find(|device| device.kind == "virtio-balloon");
        balloon.unwrap().counters.into_iter().collect()
    }

    fn balloon(&self) -> u64 {
        self.counters()["balloon_bytes"] >> 20
    }

    fn end(self) {
        // The answer may be lost with the VM.
        let _ = control(&self.guest.path("control"), async |mut vm| {
            vm.kill(KillRequest {}).await
        });
        let ended = self.running.wait(guest::LIMIT).unwrap();
        assert_eq!(ended.status, 137, "{}", ended.error());
        let error = ended.error();
        assert!(!error.contains("must reset"), "{error}");
        assert!(!error.contains("did not take back"), "{error}");
    }
}

/// A guest writes so many MiB to a file in its memory and removes it.
fn gives_back(kernel: Kernel, used: u64, arguments: &[&str]) {
    let script = format!(
        "dd if=/dev/zero of=/dev/data/file bs=1M count={used} 2>/dev/null; \
         echo used $(stat -c %s /dev/data/file); rm /dev/data/file; echo freed"
    );
    let vm = Vm::start(kernel, &script, arguments);
    vm.says(&format!("used {}\r\n", used << 20));
    vm.says("freed\r\n");
    let id = vm.running.id();
    let most = mib(id, "VmHWM:");
    assert!(most > used, "{most} MiB were never the guest's {used}");
    let wanted = most - used * 9 / 10;
    let took = within(SOON, "90 % are given back", || mib(id, "VmRSS:") <= wanted);
    println!(
        "of {used} MiB that were freed {} were the host's after {took:.1?}",
        most - mib(id, "VmRSS:")
    );
    let counters = vm.counters();
    println!("{counters:?}");
    assert!(counters["returned_bytes"] >> 20 >= used * 9 / 10);
    assert!(counters["reports"] > 0);
    assert_eq!(counters["balloon_bytes"], 0);
    // What the guest tells is as old as the last look, so the second one sees the first's.
    within(SOON, "the guest says what is free", || {
        let counters = vm.counters();
        counters["free_bytes"] >> 20 >= used && counters["total_bytes"] >= counters["free_bytes"]
    });
    vm.end();
}

#[test]
fn memory_that_was_freed_is_the_host_s_again() {
    let Some(stage) = stage() else { return };
    gives_back(Kernel::Vmlinux, size(384, 1024), &["--memory", "2G"]);
    stage.leaves_nothing();
}

#[test]
fn our_own_kernel_gives_back_what_it_freed() {
    let Some(stage) = stage() else { return };
    gives_back(Kernel::Own, 256, &["--memory", "512M"]);
    stage.leaves_nothing();
}

#[test]
fn memory_that_a_backend_shares_is_given_back_too() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("fs.sock");
    let backend = Backend::start(directory.path(), &socket);
    let share = format!("tag=share,socket={}", socket.display());
    gives_back(Kernel::Vmlinux, 256, &["--memory", "512M", "--fs", &share]);
    drop((backend, directory));
    stage.leaves_nothing();
}

#[test]
fn a_balloon_has_its_size_until_the_guest_needs_the_memory() {
    let Some(stage) = stage() else { return };
    // It leaves time to be looked at.
    let script = "until [ $(awk '/^MemFree/ {print $2}' /proc/meminfo) -lt 220000 ]; do sleep 1; done; \
                  echo little is free; sleep 15; \
                  dd if=/dev/zero of=/dev/data/file bs=1M count=300 2>/dev/null && echo written";
    let arguments = ["--memory", "512M", "--balloon", "size=256M"];
    let vm = Vm::start(Kernel::Vmlinux, script, &arguments);
    within(LONG, "the balloon has its size", || vm.balloon() == 256);
    vm.says("little is free\r\n");
    vm.says("written\r\n");
    let left = vm.balloon();
    println!("{left} MiB are left in the balloon");
    assert!(left < 200, "{left} MiB");
    let said = vm.said();
    assert!(!said.contains("Out of memory"), "{said}");
    vm.end();
    stage.leaves_nothing();
}

#[test]
fn a_balloon_has_another_size_when_its_user_says_so() {
    let Some(stage) = stage() else { return };
    let vm = Vm::start(Kernel::Own, "echo ready", &["--memory", "512M"]);
    let socket = vm.guest.path("control");
    let say = |size: &str| {
        let mut balloon = orlop();
        balloon.arg("balloon").arg(&socket).arg(size);
        let said = Running::start(balloon, &[]);
        said.and_then(|said| said.wait(guest::LIMIT)).unwrap()
    };
    for (size, mib) in [("128M", 128), ("32M", 32), ("0", 0)] {
        let said = say(size);
        assert_eq!(said.status, 0, "{said:?}");
        within(LONG, size, || vm.balloon() == mib);
    }
    let all = say("512M");
    assert_eq!(all.status, 1);
    assert!(all.error().contains("give it less"), "{all:?}");
    vm.end();
    stage.leaves_nothing();
}

#[test]
fn a_vm_without_a_balloon_has_none() {
    let Some(stage) = stage() else { return };
    let script = "ls /sys/bus/virtio/devices | wc -l; poweroff -f";
    let guest = Guest::new(Kernel::Vmlinux, script);
    let ended = guest.run(&["--balloon", "off"]);
    assert!(ended.output().contains("1\r\n"), "{ended:?}");
    assert_eq!(ended.status, 0, "{}", ended.error());
    drop(guest);
    stage.leaves_nothing();
}
