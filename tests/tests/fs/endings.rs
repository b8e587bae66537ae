//! How shared directories come and go, and what is left when a VMM or a virtiofsd does.

use super::guest::backend::Backend;
use super::*;

/// Starts a VM with a shared directory in the background, whose guest says `tick` all the time.
fn in_background(work: &Path) -> Guest {
    let script = "load virtiofs; mkdir /shared; mount -t virtiofs work /shared; cat /shared/file; echo; \
                  (until [ -e /shared/go ]; do sleep 1; done) & \
                  while :; do echo tick; sleep 1; done";
    let guest = Guest::new(Kernel::Own, script);
    fs::write(work.join("file"), "of the host").unwrap();
    let console = format!("file={}", guest.path("console").display());
    let share = share("work", work);
    let mut command = guest.command(&["-d", "--console", &console, "--fs", &share]);
    command
        .env("XDG_RUNTIME_DIR", guest.path("run"))
        .env("ORLOP_VIRTIOFSD", Cache::open().unwrap().virtiofsd());
    let started = Running::start(command, &[]).unwrap().wait(LIMIT).unwrap();
    assert_eq!(started.output(), "story\n", "{started:?}");
    until(&guest, "the guest has its directory", || {
        said(&guest).contains("of the host\r\n")
    });
    guest
}

fn steer(guest: &Guest, command: &str) -> Done {
    let mut line = orlop();
    line.args([command, "story"])
        .env("XDG_RUNTIME_DIR", guest.path("run"));
    Running::start(line, &[]).unwrap().wait(LIMIT).unwrap()
}

#[test]
fn a_vmm_that_is_killed_takes_its_virtiofsd_along() {
    let Some(stage) = stage() else { return };
    let work = tempfile::tempdir().unwrap();
    let guest = in_background(work.path());
    // One process that waits, and one in its namespaces that works.
    assert_eq!(processes("virtiofsd").len(), 2);
    let vmm = processes("orlop");
    let [vmm] = vmm.as_slice() else {
        panic!("{vmm:?}");
    };
    kill(Pid::from_raw(vmm.cast_signed()), Signal::SIGKILL).unwrap();
    until(&guest, "virtiofsd ends", || {
        processes("virtiofsd").is_empty()
    });
    drop((guest, work));
    stage.leaves_nothing();
}

#[test]
fn a_virtiofsd_that_is_killed_is_the_loss_of_one_device() {
    let Some(stage) = stage() else { return };
    let work = tempfile::tempdir().unwrap();
    let guest = in_background(work.path());
    for id in processes("virtiofsd") {
        let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
    }
    let log = guest.path("run/orlop/vm/story.log");
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    until(&guest, "the VMM says so", || {
        logged().contains("(virtiofsd) is gone")
    });
    let ticks = || said(&guest).matches("tick\r\n").count();
    let before = ticks();
    until(&guest, "the guest goes on", || ticks() > before + 2);
    let inspected = steer(&guest, "inspect");
    assert!(inspected.output().contains("running"), "{inspected:?}");
    assert!(
        inspected.output().contains("virtio-fs work"),
        "{inspected:?}"
    );
    let killed = steer(&guest, "kill");
    assert_eq!(killed.status, 0, "{killed:?}; {}", logged());
    until(&guest, "the VMM ends", || processes("orlop").is_empty());
    drop((guest, work));
    stage.leaves_nothing();
}

#[test]
fn a_directory_comes_and_goes_while_the_guest_runs() {
    let Some(stage) = stage() else { return };
    let work = tempfile::tempdir().unwrap();
    let (shared, socket) = (work.path().join("shared"), work.path().join("socket"));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the host").unwrap();
    let script = "load virtiofs; mkdir /hot; echo ready; \
                  for round in 1 2; do \
                  until mount -t virtiofs hot$round /hot 2>/dev/null; do sleep 1; done; \
                  cat /hot/file; echo; echo $round >/hot/round; umount /hot; echo round $round; done; \
                  while :; do sleep 60; done";
    let vm = Vm::start(Kernel::Vmlinux, script, &["--memory", "256M,shared"]);
    vm.says("ready");
    assert!(vm.describe().memory_shared);
    let inspected = vm.orlop("inspect", &[]);
    assert!(
        inspected.output().contains("256 MiB, shared"),
        "{inspected:?}"
    );
    for round in 1..=2 {
        let mut backend = Backend::start(&shared, &socket);
        let hot = format!("tag=hot{round},socket={}", socket.display());
        let added = vm.orlop("add-fs", &[&hot]);
        assert_eq!(added.status, 0, "{added:?}");
        let twice = format!("tag=hot{round},socket=/nonexistent");
        let again = vm.orlop("add-fs", &[&twice]);
        assert_eq!(again.status, 1, "{again:?}");
        assert!(
            again
                .error()
                .contains(&format!("the tag hot{round} already")),
            "{again:?}"
        );
        vm.says(&format!("round {round}"));
        let text = fs::read_to_string(shared.join("round")).unwrap();
        assert_eq!(text, format!("{round}\n"));
        let removed = vm.orlop("remove-device", &[added.output().trim()]);
        assert_eq!(removed.status, 0, "{removed:?}");
        // Its client is gone, and with that its life.
        assert!(backend.0.wait().unwrap().success());
    }
    vm.kill();
    drop(work);
    stage.leaves_nothing();
}
