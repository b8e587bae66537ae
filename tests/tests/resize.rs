//! A VM becomes larger and smaller while its guest works, as the guest and its user see it.

mod common;
mod guest;

use std::cell::RefCell;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::stage;
use guest::{Guest, Kernel, control, orlop};
use orlop_proto::vmm::v1::{DescribeRequest, DescribeResponse, KillRequest};
use orlop_testbed::containerd::ctr::{Done, Running};

/// How long a guest may take over it on an emulated machine that is busy with other things.
const LONG: Duration = Duration::from_secs(300);

/// The guest takes what comes, as a system's udev would have it, and says what it has whenever that is something else. What it is asked to
/// use of its memory it uses once it has as much.
const SCRIPT: &str = "load virtio_mem; \
    mkdir /dev/data; mount -t tmpfs -o size=1400m data /dev/data; last=; \
    while :; do \
      for cpu in /sys/devices/system/cpu/cpu[1-9]*/online; do \
        [ -e $cpu ] && [ $(cat $cpu) = 0 ] && echo 1 >$cpu; \
      done; \
      mib=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024)); \
      now=\"has $(grep -c ^processor /proc/cpuinfo) vCPUs and $mib MiB\"; \
      [ \"$now\" = \"$last\" ] || echo \"$now\"; last=$now; \
      if [ $mib -gt 1700 ] && [ -z \"$used\" ]; then \
        dd if=/dev/zero of=/dev/data/file bs=1M count=1024 2>/dev/null; \
        used=$(stat -c %s /dev/data/file); echo used $used; rm /dev/data/file; \
      fi; \
      sleep 1; \
    done";

struct Vm {
    guest: Guest,
    running: RefCell<Option<Running>>,
}

impl Vm {
    fn start(kernel: Kernel, arguments: &[&str]) -> Self {
        let guest = Guest::new(kernel, SCRIPT);
        let (console, socket) = (guest.path("console"), guest.path("control"));
        let console = format!("file={}", console.display());
        // As the VMM's own command line has it for a VM whose memory may grow.
        let cmdline = format!("{} memhp_default_state=online_movable", guest::COMMAND_LINE);
        let mut line = vec!["--cmdline", &cmdline, "--console", &console, "--api-socket"];
        line.push(socket.to_str().unwrap());
        line.extend(arguments);
        let running = RefCell::new(Some(guest.start(&line)));
        let vm = Vm { guest, running };
        vm.says("has 1 vCPUs");
        vm
    }

    /// The last thing that the guest said it has.
    fn has(&self) -> (u64, u64) {
        let said = self.said();
        let last = said.lines().rfind(|line| line.starts_with("has "));
        let mut numbers = last
            .unwrap()
            .split(' ')
            .filter_map(|word| word.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    fn says(&self, what: &str) {
        self.until(what, || self.said().contains(what));
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + LONG;
        while !holds() {
            assert!(
                Instant::now() < end,
                "{what}: not within {LONG:?}: {}",
                self.said()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn said(&self) -> String {
        let said = fs::read(self.guest.path("console")).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    fn tell(&self, verb: &str, arguments: &[&str]) -> Done {
        let mut command = orlop();
        command.arg(verb).arg(self.guest.path("control"));
        command.args(arguments);
        run(command)
    }

    fn resize(&self, arguments: &[&str]) {
        let done = self.tell("resize", &[arguments, &["--timeout", "240s"]].concat());
        if done.status != 0 {
            // Why, if that is so because the VM has ended.
            let ended = self.running.take().unwrap().wait(guest::LIMIT);
            panic!("{arguments:?}: {} {} {ended:?}", done.error(), self.said());
        }
    }

    fn refuses(&self, arguments: &[&str], hint: &str) {
        let done = self.tell("resize", arguments);
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.error().contains(hint), "{}", done.error());
    }

    fn describe(&self) -> DescribeResponse {
        let socket = self.guest.path("control");
        control(&socket, async |mut vm| {
            vm.describe(DescribeRequest {}).await
        })
        .unwrap()
    }

    fn end(self) {
        // The answer may be lost with the VM.
        let _ = control(&self.guest.path("control"), async |mut vm| {
            vm.kill(KillRequest {}).await
        });
        let said = self.said();
        let running = self.running.take().unwrap();
        let ended = running.wait(guest::LIMIT).unwrap();
        assert_eq!(ended.status, 137, "{}", ended.error());
        assert!(!ended.error().contains("must reset"), "{}", ended.error());
        assert!(!said.contains("Call Trace"), "{said}");
    }
}

fn run(command: Command) -> Done {
    let running = Running::start(command, &[]).unwrap();
    running.wait(LONG).unwrap()
}

/// A number of MiB in the VMM's status.
fn resident(vm: &Vm) -> u64 {
    let status = fs::read_to_string(format!(
        "/proc/{}/status",
        vm.running.borrow().as_ref().unwrap().id()
    ))
    .unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim_matches(|c: char| !c.is_ascii_digit());
    kib.parse::<u64>().unwrap() >> 10
}

/// From 1 to 4 vCPUs and 512 MiB to 2 GiB, and back, as often as this: what came once can come again.
fn grows_and_shrinks(kernel: Kernel, rounds: u32) {
    let vm = Vm::start(kernel, &["--cpus", "1,max=4", "--memory", "512M,max=2G"]);
    let (_, at_first) = vm.has();
    for round in 0..rounds {
        vm.resize(&["--cpus", "4", "--memory", "2G"]);
        vm.until("it has all", || {
            let (vcpus, mib) = vm.has();
            vcpus == 4 && mib >= at_first + 1500
        });
        let described = vm.describe();
        assert_eq!((described.vcpus, described.memory_bytes), (4, 2 << 30));
        if round == 0 {
            vm.says("used 1073741824");
            println!("the VMM has {} MiB with all in use", resident(&vm));
        }
        vm.resize(&["--memory", "512M"]);
        vm.resize(&["--cpus", "1"]);
        vm.until("it has what it had", || {
            vm.has().0 == 1 && vm.has().1 <= at_first
        });
        let described = vm.describe();
        assert_eq!((described.vcpus, described.memory_bytes), (1, 512 << 20));
        let left = resident(&vm);
        println!("round {round}: {left} MiB are left");
        assert!(left < 600, "{left} MiB");
    }
    vm.resize(&["--cpus", "3"]);
    vm.until("it has three", || vm.has().0 == 3);
    vm.end();
}

#[test]
fn a_vm_grows_and_shrinks_while_it_runs() {
    let Some(stage) = stage() else { return };
    // Once: in the emulated host a guest of Linux 6.1 was seen to crash in the second round.
    grows_and_shrinks(Kernel::Vmlinux, 1);
    stage.leaves_nothing();
}

#[test]
fn our_own_kernel_grows_and_shrinks() {
    let Some(stage) = stage() else { return };
    grows_and_shrinks(Kernel::Own, 2);
    stage.leaves_nothing();
}

#[test]
fn a_guest_that_boots_again_has_the_size_that_it_was_given() {
    let Some(stage) = stage() else { return };
    let vm = Vm::start(
        Kernel::Own,
        &["--cpus", "1,max=2", "--memory", "256M,max=512M"],
    );
    let (_, at_first) = vm.has();
    vm.resize(&["--cpus", "2", "--memory", "512M"]);
    vm.until("it has all", || {
        vm.has().0 == 2 && vm.has().1 >= at_first + 250
    });
    let before = vm.said().len();
    assert_eq!(vm.tell("reset", &[]).status, 0);
    vm.until("it has all again", || {
        let said = vm.said();
        let since = said.get(before..).unwrap_or_default();
        since.contains("has 2 vCPUs") && vm.has().1 >= at_first + 250
    });
    vm.resize(&["--cpus", "1", "--memory", "256M"]);
    vm.end();
    stage.leaves_nothing();
}

#[test]
fn a_size_that_cannot_be_had_is_refused_with_the_reason() {
    let Some(stage) = stage() else { return };
    let vm = Vm::start(
        Kernel::Own,
        &["--cpus", "1,max=2", "--memory", "256M,max=512M"],
    );
    for (arguments, hint) in [
        (&["--cpus", "3"][..], "1 to 2 vCPUs"),
        (&["--memory", "1G"], "256 to 512 MiB"),
        (&["--memory", "128M"], "orlop balloon"),
        (&["--memory", "301M"], "by 2 MiB"),
        (&["--cpus", "2", "--memory", "1G"], "256 to 512 MiB"),
    ] {
        vm.refuses(arguments, hint);
    }
    let described = vm.describe();
    assert_eq!(
        (described.vcpus, described.wanted_memory_bytes),
        (1, 256 << 20)
    );
    assert_eq!(vm.tell("pause", &[]).status, 0);
    vm.refuses(&["--cpus", "2"], "resume it first");
    assert_eq!(vm.tell("resume", &[]).status, 0);
    vm.resize(&["--cpus", "2"]);
    vm.end();

    let fixed = Vm::start(Kernel::Own, &["--memory", "256M"]);
    fixed.refuses(&["--cpus", "2"], "--cpus N,max=N");
    fixed.refuses(&["--memory", "512M"], "--memory SIZE,max=SIZE");
    fixed.end();
    stage.leaves_nothing();
}
