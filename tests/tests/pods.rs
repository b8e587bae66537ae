//! Pods, as the kubelet runs them through the CRI.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Stage, host_kernel, output, processes, stage};
use orlop_testbed::containerd::cri::{Container, Cri, Pod};
use orlop_testbed::containerd::exec::{stream, unread};
use orlop_testbed::setup::build;
use orlop_testbed::stories::size;

/// A command that goes on until it is told to end, and then ends at once.
const WAIT: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn two_containers_of_a_pod_share_one_guest() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("pair").unwrap();
    let first = cri.run(&pod, &Container::busybox("first", WAIT)).unwrap();
    let second = cri.run(&pod, &Container::busybox("second", WAIT)).unwrap();

    let boot_id = |container: &str| output(&cri, container, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(boot_id(&first), boot_id(&second), "each has its own guest");
    assert_ne!(output(&cri, &first, "uname -r").trim(), host_kernel());
    assert_eq!(processes("orlop").len(), 1, "a pod is one VM");
    assert_eq!(processes("containerd-shim-orlop-v2").len(), 1);

    // They are apart in all else: the root, the processes.
    output(&cri, &first, "touch /only-in-first");
    let exists = cri
        .exec(&second, &["test", "-e", "/only-in-first"])
        .unwrap();
    assert_eq!(exists.exit_code, 1, "the containers share a root");

    // A container that ends takes neither the other nor the guest with it.
    cri.stop(&first, 10).unwrap();
    assert_eq!(output(&cri, &second, "echo alive"), "alive\n");
    assert!(cri.is_pod_ready(&pod).unwrap());
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_containers_output_is_in_its_log_and_its_status_in_its_state() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("log").unwrap();
    let script = ["sh", "-c", "echo said; echo warned >&2; exit 7"];
    let container = cri
        .run(&pod, &Container::busybox("speaker", &script))
        .unwrap();
    assert_eq!(cri.wait(&container, LIMIT).unwrap().exit_code, 7);
    let log = cri.log(&pod, "speaker").unwrap();
    assert!(log.contains("said\n") && log.contains("warned\n"), "{log}");
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_command_in_a_container_has_its_streams_and_its_status() {
    let Some((stage, cri, pod, container)) = running("exec") else {
        return;
    };
    let done = cri
        .exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 3"])
        .unwrap();
    assert_eq!(done.stdout, b"out\n");
    assert_eq!(done.stderr, b"err\n");
    assert_eq!(done.exit_code, 3);

    let script = [
        "sh",
        "-c",
        "echo err >&2; read line; echo \"heard $line\"; exit 4",
    ];
    let address = cri.exec_address(&container, &script, false).unwrap();
    let done = stream(&address, b"hello\n", LIMIT).unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "heard hello\n");
    assert_eq!(String::from_utf8_lossy(&done.stderr), "err\n");
    assert_eq!(done.status, 4);
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_command_with_a_terminal_has_one() {
    let Some((stage, cri, pod, container)) = running("terminal") else {
        return;
    };
    let script = [
        "sh",
        "-c",
        "test -t 0 && test -t 1 && echo on-a-terminal; read l; echo got=$l; exit 5",
    ];
    let address = cri.exec_address(&container, &script, true).unwrap();
    let done = stream(&address, b"typed\n", LIMIT).unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    // A terminal writes what is typed, and ends lines with CR LF.
    assert!(output.contains("on-a-terminal\r\n"), "{output:?}");
    assert!(output.contains("got=typed\r\n"), "{output:?}");
    assert_eq!(done.status, 5);
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn megabytes_pass_through_a_command_in_a_container_unchanged() {
    let Some((stage, cri, pod, container)) = running("bytes") else {
        return;
    };
    let count = u32::try_from(size(10, 100)).unwrap() << 20;
    let bytes: Vec<u8> = (0..count)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    // This protocol cannot close standard input, so the command counts.
    let size = bytes.len().to_string();
    let address = cri
        .exec_address(&container, &["head", "-c", &size], false)
        .unwrap();
    let done = stream(&address, &bytes, LIMIT * 2).unwrap();
    assert_eq!(done.status, 0);
    assert_eq!(done.stdout.len(), bytes.len());
    assert!(done.stdout == bytes, "the bytes differ");
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn who_does_not_read_what_a_command_writes_keeps_nobody_else_waiting() {
    let Some((stage, cri, pod, container)) = running("unread") else {
        return;
    };
    let shim = processes("containerd-shim-orlop-v2");
    let [shim] = shim[..] else {
        panic!("one shim: {shim:?}");
    };
    let before = anonymous_kib(shim);
    let address = cri.exec_address(&container, &["yes"], false).unwrap();
    let unread = unread(&address).unwrap();
    // Until all that is between the command and its reader is full.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(output(&cri, &container, "echo $((6 * 7))"), "42\n");
    let other = Container::busybox("other", &["sh", "-c", "exit 3"]);
    let other = cri.run(&pod, &other).unwrap();
    assert_eq!(cri.wait(&other, LIMIT).unwrap().exit_code, 3);
    let grown = anonymous_kib(shim).saturating_sub(before);
    assert!(grown < 8 << 10, "the shim has grown by {grown} KiB");
    drop(unread);
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_missing_program_is_an_error_when_the_container_starts() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("missing").unwrap();
    let container = Container::busybox("wrong", &["/bin/no-such-program"]);
    let error = cri.run(&pod, &container).unwrap_err();
    let message = error.message();
    assert!(message.contains("no-such-program"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");

    // The same for a command in a container that runs; the pod is none the worse.
    let container = cri.run(&pod, &Container::busybox("right", WAIT)).unwrap();
    let started = Instant::now();
    let error = cri.exec(&container, &["/bin/no-such-program"]).unwrap_err();
    assert!(error.message().contains("no-such-program"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60), "not at once");
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_container_is_asked_to_end_and_then_killed() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("end").unwrap();
    let polite = ["sh", "-c", "trap 'exit 42' TERM; while :; do sleep 1; done"];
    let polite = cri
        .run(&pod, &Container::busybox("polite", &polite))
        .unwrap();
    let stubborn = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    let stubborn = cri
        .run(&pod, &Container::busybox("stubborn", &stubborn))
        .unwrap();
    // A shell takes a moment to set its traps.
    std::thread::sleep(Duration::from_secs(3));

    cri.stop(&polite, 60).unwrap();
    assert_eq!(cri.status(&polite).unwrap().exit_code, 42);
    let started = Instant::now();
    cri.stop(&stubborn, 3).unwrap();
    assert_eq!(cri.status(&stubborn).unwrap().exit_code, 137);
    assert!(
        started.elapsed() >= Duration::from_secs(3),
        "no grace was given"
    );
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_file_of_the_machine_can_be_mounted_into_a_container() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let directory = tempfile::tempdir_in(stage.node.directory()).unwrap();
    let file = directory.path().join("settings");
    fs::write(&file, "colour=blue\n").unwrap();
    let pod = cri.run_pod("mount").unwrap();
    let container = Container {
        mounts: &[("/etc/settings", file.to_str().unwrap())],
        ..Container::busybox("reader", WAIT)
    };
    let container = cri.run(&pod, &container).unwrap();
    assert_eq!(
        output(&cri, &container, "cat /etc/settings"),
        "colour=blue\n"
    );
    cri.remove_pod(&pod).unwrap();
    drop(directory);
    stage.leaves_nothing();
}

/// Swaps a volume as the kubelet does: a directory of its own for each state, and a link that leads to the present one.
fn swap(volume: &Path, state: &str, greeting: &str) {
    let before = fs::read_link(volume.join("..data"));
    fs::create_dir_all(volume.join(state)).unwrap();
    fs::write(volume.join(state).join("greeting"), greeting).unwrap();
    symlink(state, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    match before {
        Ok(before) => fs::remove_dir_all(volume.join(before)).unwrap(),
        Err(_) => symlink("..data/greeting", volume.join("greeting")).unwrap(),
    }
}

#[test]
fn who_watches_a_config_map_in_a_container_hears_that_it_has_changed() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let directory = tempfile::tempdir_in(stage.node.directory()).unwrap();
    let volume = directory.path().join("kubernetes.io~configmap/config");
    swap(&volume, "..1", "hello");
    let peer = build::programs_directory().join("orlop-story-peer");
    let pod = cri.run_pod("watch").unwrap();
    let container = Container {
        readonly_mounts: &[
            ("/config", volume.to_str().unwrap()),
            ("/peer", peer.to_str().unwrap()),
        ],
        ..Container::busybox("watcher", &["/peer", "watch", "/config"])
    };
    let container = cri.run(&pod, &container).unwrap();
    let greeting = || output(&cri, &container, "cat /config/greeting");
    assert_eq!(greeting(), "hello");
    let until = |what: &str, holds: &dyn Fn(&str) -> bool| {
        let end = Instant::now() + LIMIT;
        loop {
            let said = cri.log(&pod, "watcher").unwrap_or_default();
            if holds(&said) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {said}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until("it watches", &|said| said == "watching\n");
    for (heard, state, text) in [(1, "..2", "good bye"), (2, "..3", "hello again")] {
        swap(&volume, state, text);
        let swaps = |said: &str| said.lines().filter(|name| *name == "..data").count();
        until("it hears of the swap", &|said| swaps(said) == heard);
        assert_eq!(greeting(), text, "what it has heard of is not there");
        let names = format!("{state}\n..data\ngreeting\n");
        until("the old state goes", &|_| {
            output(&cri, &container, "ls -A /config | sort") == names
        });
    }
    let written = cri
        .exec(&container, &["sh", "-c", "echo no >/config/new"])
        .unwrap();
    assert_ne!(written.exit_code, 0, "it can be written to");
    cri.remove_pod(&pod).unwrap();
    drop(directory);
    stage.leaves_nothing();
}

#[test]
fn many_pods_one_after_another_and_nothing_grows() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let one = |number: u64| {
        let pod = cri.run_pod(&format!("row-{number}")).unwrap();
        let script = ["sh", "-c", "uname -r; exit 9"];
        let container = cri
            .run(&pod, &Container::busybox("brief", &script))
            .unwrap();
        assert_eq!(cri.wait(&container, LIMIT).unwrap().exit_code, 9);
        cri.remove_pod(&pod).unwrap();
    };
    // The first pods fill caches and start threads that stay.
    (0..2).for_each(one);
    let before = Size::of(&stage);
    (2..2 + size(4, 50)).for_each(one);
    // What has been closed may take a moment to go.
    let end = Instant::now() + LIMIT;
    let mut after = Size::of(&stage);
    while !after.is_about(&before) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        after = Size::of(&stage);
    }
    assert!(
        after.is_about(&before),
        "containerd: {before:#?}, then {after:#?}"
    );
    stage.leaves_nothing();
}

#[test]
fn pods_come_and_go_at_once_and_leave_nothing() {
    let Some(stage) = stage() else { return };
    let cri = &stage.cri();
    let one = |number: u64| {
        let pod = cri.run_pod(&format!("crowd-{number}")).unwrap();
        let container = Container::busybox("brief", &["sh", "-c", "uname -r; exit 9"]);
        let container = cri.run(&pod, &container).unwrap();
        assert_eq!(cri.wait(&container, LIMIT).unwrap().exit_code, 9);
        cri.remove_pod(&pod).unwrap();
    };
    std::thread::scope(|scope| {
        (0..size(3, 10)).for_each(|number| drop(scope.spawn(move || one(number))));
    });
    stage.leaves_nothing();
}

/// What may grow in containerd when a pod is not wholly forgotten.
#[derive(Debug)]
struct Size {
    /// What its descriptors are.
    descriptors: Vec<String>,
    memory_kib: u64,
}

impl Size {
    fn of(stage: &Stage) -> Self {
        let id = stage.node.process().unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap();
        // One that is closed meanwhile leads nowhere.
        let descriptors = descriptors
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .map(|link| link.display().to_string());
        Self {
            descriptors: descriptors.collect(),
            memory_kib: anonymous_kib(id),
        }
    }

    /// Whether it is no more than it was `before`, but for what a runtime with garbage needs now and then. A pod that was not forgotten
    /// would hold a descriptor at least, and there were ten.
    fn is_about(&self, before: &Self) -> bool {
        self.descriptors.len() < before.descriptors.len() + 8
            && self.memory_kib <= before.memory_kib + 24 * 1024
    }
}

/// The memory that a process has to itself.
fn anonymous_kib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB"));
    memory.unwrap().trim().parse().unwrap()
}

/// A pod with one container that waits.
fn running(name: &str) -> Option<(Stage, Cri, Pod, String)> {
    let stage = stage()?;
    let cri = stage.cri();
    let pod = cri.run_pod(name).unwrap();
    let container = cri.run(&pod, &Container::busybox("main", WAIT)).unwrap();
    Some((stage, cri, pod, container))
}
