//! A pod's VM is as large as the pod may become, and what a pod may not have is refused before there is one.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{output, processes, stage, with_config};
use orlop_testbed::containerd::cri::{Container, Cri, Pod, resources, v1};
use orlop_testbed::containerd::{HANDLER, LARGE_HANDLER, OrlopConfig};
use orlop_testbed::setup::build;

/// A command that goes on until it is told to end, and then ends at once.
const WAIT: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
/// A command that takes more memory than there is, once it is told to.
const TAKES: &[&str] = &[
    "sh",
    "-c",
    "until test -e /go; do sleep 1; done; tail /dev/zero",
];
const MIB: i64 = 1 << 20;

#[test]
fn a_vm_is_as_large_as_its_pods_limits() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let limits = resources(1500, 96 * MIB);
    let pod = cri
        .run_pod_changed("limits", HANDLER, |config| {
            config.linux.as_mut().unwrap().resources = Some(limits);
        })
        .unwrap();
    let container = Container {
        memory: 96 * MIB,
        cpu: 1500,
        ..Container::busybox("main", WAIT)
    };
    let main = cri.run(&pod, &container).unwrap();
    assert_eq!(vcpus(&cri, &main), 2);
    // 36 MiB for the guest and a 64th; the kernel's own part does not count as memory.
    let total = memory(&cri, &main, "MemTotal");
    assert!((96..=133).contains(&total), "{total} MiB");
    let left = memory(&cri, &main, "MemAvailable");
    println!("of 133 MiB the guest has {total}, of which {left} are to be had");
    assert!(left >= 96, "{left} MiB are left for a container of 96 MiB");
    assert_eq!(
        output(&cri, &main, "cat /sys/fs/cgroup/cpu.max"),
        "150000 100000\n"
    );
    assert_eq!(
        output(&cri, &main, "cat /sys/fs/cgroup/memory.max"),
        format!("{}\n", 96 * MIB)
    );
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn the_first_containers_limits_count_where_nobody_tells_the_pods() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("first").unwrap();
    let container = Container {
        memory: 400 * MIB,
        cpu: 2000,
        ..Container::busybox("main", WAIT)
    };
    let main = cri.run(&pod, &container).unwrap();
    assert_eq!(vcpus(&cri, &main), 2);
    let total = memory(&cri, &main, "MemTotal");
    assert!((400..=470).contains(&total), "{total} MiB");
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_pods_annotations_say_what_its_vm_is() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let permit =
        |config: &mut OrlopConfig| config.more = "allow_annotations = [\"cmdline\"]".into();
    with_config(&stage, permit, || {
        let pod = annotated(
            &cri,
            &[
                ("orlop.dev/vcpus", "2"),
                ("orlop.dev/memory", "320Mi"),
                ("orlop.dev/cmdline", "story.of=annotations"),
            ],
        );
        let pod = pod.unwrap();
        let main = cri.run(&pod, &Container::busybox("main", WAIT)).unwrap();
        assert_eq!(vcpus(&cri, &main), 2);
        let total = memory(&cri, &main, "MemTotal");
        assert!((256..=320).contains(&total), "{total} MiB");
        let line = output(&cri, &main, "cat /proc/cmdline");
        assert!(line.contains(" story.of=annotations"), "{line}");
        cri.remove_pod(&pod).unwrap();
    });
    stage.leaves_nothing();
}

#[test]
fn what_a_pod_may_not_have_is_refused_at_once_with_the_reason() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let bound = |config: &mut OrlopConfig| {
        config.more = "max_vcpus = 2\nmax_memory = \"1G\"".into();
    };
    with_config(&stage, bound, || {
        for (name, value, words) in [
            (
                "orlop.dev/vcpus",
                "3",
                ["orlop.dev/vcpus is 3", "1 to 2 vCPUs"],
            ),
            (
                "orlop.dev/vcpus",
                "many",
                ["orlop.dev/vcpus is \"many\"", "a whole number"],
            ),
            (
                "orlop.dev/memory",
                "2Gi",
                ["orlop.dev/memory is 2048M", "48M to 1024M"],
            ),
            (
                "orlop.dev/memory",
                "1.5Gi",
                ["orlop.dev/memory is \"1.5Gi\"", "512Mi or 2Gi"],
            ),
            (
                "orlop.dev/cpus",
                "2",
                ["orlop.dev/cpus is not known", "orlop.dev/vcpus"],
            ),
            (
                "orlop.dev/kernel",
                "/boot/vmlinuz",
                ["orlop.dev/kernel is", "allow_annotations"],
            ),
        ] {
            let started = Instant::now();
            let error = annotated(&cri, &[(name, value)]).unwrap_err();
            let message = error.message();
            for word in words {
                assert!(
                    message.contains(word),
                    "{name}={value}: no {word:?} in {message}"
                );
            }
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(started.elapsed() < Duration::from_secs(60), "not at once");
            assert_eq!(processes("orlop"), [0_u32; 0], "a VM was started");
        }
        // A container that would have the pod grow beyond its bounds.
        let pod = cri.run_pod("bounds").unwrap();
        let large = Container {
            memory: 1024 * MIB,
            ..Container::busybox("large", WAIT)
        };
        let error = cri.run(&pod, &large).unwrap_err();
        let message = error.message();
        assert!(message.contains("48M to 1024M"), "{message}");
        // The pod is none the worse.
        let small = cri.run(&pod, &Container::busybox("small", WAIT)).unwrap();
        assert_eq!(vcpus(&cri, &small), 1);
        cri.remove_pod(&pod).unwrap();
    });
    stage.leaves_nothing();
}

#[test]
fn a_vm_grows_with_its_pod_and_shrinks_again() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("grows").unwrap();
    let first = Container {
        memory: 64 * MIB,
        cpu: 500,
        ..Container::busybox("first", WAIT)
    };
    let first = cri.run(&pod, &first).unwrap();
    assert_eq!(vcpus(&cri, &first), 1);
    let at_first = memory(&cri, &first, "MemTotal");
    assert!(at_first <= 161, "{at_first} MiB");

    // A container that comes later brings what it needs with it, before it runs.
    let second = Container {
        memory: 256 * MIB,
        cpu: 1000,
        ..Container::busybox("second", WAIT)
    };
    let second = cri.run(&pod, &second).unwrap();
    until(|| memory(&cri, &second, "MemTotal") >= at_first + 240);
    let total = memory(&cri, &second, "MemTotal");
    until(|| vcpus(&cri, &second) == 2);
    // It can use what it was promised.
    let script = "dd if=/dev/zero of=/dev/null bs=150M count=1 2>/dev/null && echo used";
    assert_eq!(output(&cri, &second, script), "used\n");

    // New limits hold in the guest, and the VM goes with them.
    cri.update(&second, resources(1000, 384 * MIB)).unwrap();
    until(|| memory(&cri, &second, "MemTotal") >= total + 120);
    let more = memory(&cri, &second, "MemTotal");
    let limit = output(&cri, &second, "cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit, format!("{}\n", 384 * MIB));
    // The processor goes before the memory does. An emulated host does not save the next instruction's address (SVM's NRIPS), so KVM
    // reads what the guest executes; and it gives up where one of two processors executes a page that the other is moving out of the way.
    cri.update(&second, resources(250, 384 * MIB)).unwrap();
    assert_eq!(
        output(&cri, &second, "cat /sys/fs/cgroup/cpu.max"),
        "25000 100000\n"
    );
    until(|| vcpus(&cri, &first) == 1);
    cri.update(&second, resources(250, 64 * MIB)).unwrap();
    let limit = output(&cri, &second, "cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit, format!("{}\n", 64 * MIB));
    until(|| memory(&cri, &first, "MemTotal") < more - 100);

    // More than there can be is refused, and nothing has changed.
    let error = cri.update(&second, resources(250, 1 << 40)).unwrap_err();
    assert!(error.message().contains("memory"), "{}", error.message());
    let limit = output(&cri, &second, "cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit, format!("{}\n", 64 * MIB));
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn what_a_pod_takes_is_counted_in_its_cgroup() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    // As the kubelet names it with the driver cgroupfs, and with systemd.
    let slices = "/orlopstory.slice/orlopstory-pod1.slice";
    for parent in ["/orlopstory/pod1", slices] {
        let pod = cri
            .run_pod_changed("counted", HANDLER, |config| {
                config.linux.as_mut().unwrap().cgroup_parent = parent.into();
            })
            .unwrap();
        let main = cri.run(&pod, &Container::busybox("main", WAIT)).unwrap();
        let own = if parent == slices {
            format!("{parent}/cri-containerd-{}.scope", pod.id)
        } else {
            format!("{parent}/{}", pod.id)
        };
        for program in ["containerd-shim-orlop-v2", "orlop", "virtiofsd"] {
            let all = processes(program);
            assert!(!all.is_empty(), "no {program}");
            for id in all {
                let cgroup = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
                assert_eq!(cgroup, format!("0::{own}\n"), "{program}");
            }
        }
        // What the guest takes is there, and not somewhere else.
        let counted = || -> i64 {
            let text = fs::read_to_string(pod.cgroup().join("memory.current")).unwrap();
            text.trim().parse().unwrap()
        };
        let before = counted();
        println!("{parent}: an idle pod takes {} MiB", before / MIB);
        output(
            &cri,
            &main,
            "dd if=/dev/zero of=/dev/shm/file bs=1M count=60 2>&1",
        );
        // Not all of it: some of the memory that the guest has let go of is the host's again only a little later.
        let after = counted();
        assert!(after >= before + 30 * MIB, "{before}, then {after}");
        cri.remove_pod(&pod).unwrap();
        let top = pod.cgroup();
        fs::remove_dir(top.parent().unwrap()).unwrap();
    }
    // A container without a pod, which nobody makes a cgroup for.
    let done = stage.run("echo here");
    assert_eq!(done.output(), "here\n", "{}", done.error());
    stage.leaves_nothing();
}

#[test]
fn a_container_that_takes_all_that_its_pod_may_have_ends_and_the_vm_does_not() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let limit = 256 * MIB;
    // An overhead which is less than guest and processes take.
    let parent = kubelets_group(limit + 24 * MIB);
    let pod = run_pod_in(&cri, "full");
    let hog = Container {
        memory: limit,
        ..Container::busybox("hog", TAKES)
    };
    let hog = cri.run(&pod, &hog).unwrap();
    let other = Container {
        memory: 16 * MIB,
        ..Container::busybox("other", WAIT)
    };
    let other = cri.run(&pod, &other).unwrap();
    output(&cri, &hog, "touch /go");
    let ended = cri.wait(&hog, Duration::from_secs(180)).unwrap();
    assert_eq!(ended.exit_code, 137, "{}: {}", ended.reason, ended.message);
    assert_eq!(ended.reason, "OOMKilled");
    let read = |name: &str| fs::read_to_string(pod.cgroup().join(name)).unwrap();
    let peak: i64 = read("memory.peak").trim().parse().unwrap();
    println!("the pod took {} of {} MiB", peak / MIB, limit / MIB + 24);
    let events = read("memory.events");
    assert!(events.contains("oom_kill 0\n"), "{events}");
    assert_eq!(output(&cri, &other, "echo here"), "here\n");
    cri.remove_pod(&pod).unwrap();
    fs::remove_dir(parent.parent().unwrap()).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_container_may_have_all_of_its_limit_with_the_runtimeclass_s_overhead() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let (limit, overhead) = (256 * MIB, runtimeclass_overhead());
    let parent = kubelets_group(limit + overhead);
    let pod = run_pod_in(&cri, "brim");
    // What a container has of its own beside what it is asked to hold: its shell, the tables of its pages.
    let held = limit - 6 * MIB;
    let main = run_holding(&cri, &pod, limit, held);
    // Commands run in it, and it holds what it held.
    for _ in 0..5 {
        assert!(used(&cri, &main) > held);
    }
    let events = output(&cri, &main, "cat /sys/fs/cgroup/memory.events");
    assert!(events.contains("oom_kill 0\n"), "{events}");
    let read = |name: &str| fs::read_to_string(pod.cgroup().join(name)).unwrap();
    let peak: i64 = read("memory.peak").trim().parse().unwrap();
    println!(
        "the pod took {} of {} MiB, and the guest has",
        peak / MIB,
        (limit + overhead) / MIB
    );
    println!("{}", output(&cri, &main, "grep -E '^Mem' /proc/meminfo"));
    println!("what its group counts, in bytes:\n{}", read("memory.stat"));
    let events = read("memory.events");
    assert!(events.contains("oom_kill 0\n"), "{events}");
    cri.remove_pod(&pod).unwrap();
    fs::remove_dir(parent.parent().unwrap()).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_container_with_more_files_than_the_node_has_room_for_goes_on() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let limit = 128 * MIB;
    let parent = kubelets_group(limit + runtimeclass_overhead());
    let pod = run_pod_in(&cri, "files");
    let held = 112 * MIB;
    let main = run_holding(&cri, &pod, limit, held);
    // The node has an open file for each file that the guest has heard of: 2.8 KB, of which the guest's kernel, which has them at 1.1, knows nothing.
    let make = "mkdir -p /d; i=0; while [ $i -lt 7000 ]; do : >/d/$i; i=$((i+1)); done";
    output(&cri, &main, make);
    assert_eq!(output(&cri, &main, "ls /d | wc -l"), "7000\n");
    let read = |name: &str| fs::read_to_string(pod.cgroup().join(name)).unwrap();
    let events = read("memory.events");
    println!("what its group tells:\n{events}");
    assert!(events.contains("oom_kill 0\n"), "{events}");
    assert!(
        !events.contains("high 0\n"),
        "there was room enough: {events}"
    );
    cri.remove_pod(&pod).unwrap();
    fs::remove_dir(parent.parent().unwrap()).unwrap();
    stage.leaves_nothing();
}

/// A container with this limit that holds so many bytes of it, when it does.
fn run_holding(cri: &Cri, pod: &Pod, limit: i64, held: i64) -> String {
    let script = format!("(head -c {held} /dev/zero; sleep 100000) | tail -c {held}");
    let command = ["sh", "-c", &script];
    let main = Container {
        memory: limit,
        ..Container::busybox("main", &command)
    };
    let main = cri.run(pod, &main).unwrap();
    until(|| used(cri, &main) > held);
    main
}

/// How many bytes a container's own group counts.
fn used(cri: &Cri, container: &str) -> i64 {
    let text = output(cri, container, "cat /sys/fs/cgroup/memory.current");
    text.trim().parse().unwrap()
}

/// What the RuntimeClass that Orlop comes with says a pod takes beside its containers.
fn runtimeclass_overhead() -> i64 {
    let class = include_str!("../../deploy/runtimeclass.yaml");
    let (_, overhead) = class.split_once("podFixed:").unwrap();
    let (_, size) = overhead.split_once("memory: ").unwrap();
    let (mib, _) = size.split_once("Mi").unwrap();
    mib.parse::<i64>().unwrap() * MIB
}

/// A group for a pod as a kubelet makes it, which is of `max` bytes: the containers' limits and the overhead.
fn kubelets_group(max: i64) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let parent = root.join("orlopfull/pod1");
    fs::create_dir_all(&parent).unwrap();
    for directory in [root, parent.parent().unwrap()] {
        fs::write(directory.join("cgroup.subtree_control"), "+memory").unwrap();
    }
    fs::write(parent.join("memory.max"), max.to_string()).unwrap();
    parent
}

/// A pod in that group.
fn run_pod_in(cri: &Cri, name: &str) -> Pod {
    let in_group = |config: &mut v1::PodSandboxConfig| {
        config.linux.as_mut().unwrap().cgroup_parent = "/orlopfull/pod1".into();
    };
    cri.run_pod_changed(name, HANDLER, in_group).unwrap()
}

#[test]
fn a_pods_cgroup_goes_though_all_that_was_in_it_was_killed() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("killed").unwrap();
    let main = cri.run(&pod, &Container::busybox("main", WAIT)).unwrap();
    assert!(pod.cgroup().join(&pod.id).exists());
    // All at once, so that none of them can clean up after another.
    fs::write(pod.cgroup().join(&pod.id).join("cgroup.kill"), "1").unwrap();
    let status = cri.wait(&main, Duration::from_secs(120)).unwrap();
    assert_ne!(status.exit_code, 0);
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_runtime_handler_may_have_a_configuration_of_its_own() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let mut config = stage.node.orlop_config().unwrap();
    config.vcpus = 2;
    let write = |config: &OrlopConfig| {
        let file = stage.node.large_config();
        stage.node.write_orlop_config_to(&file, config).unwrap();
    };
    write(&config);
    let pod = cri.run_pod_with("large", LARGE_HANDLER).unwrap();
    let main = cri.run(&pod, &Container::busybox("main", WAIT)).unwrap();
    assert_eq!(vcpus(&cri, &main), 2);
    // A pod keeps what it was made with.
    config.more = "kernal = \"/boot/vmlinuz\"".into();
    write(&config);
    let more = cri.run(&pod, &Container::busybox("more", WAIT)).unwrap();
    assert_eq!(vcpus(&cri, &more), 2);
    cri.remove_pod(&pod).unwrap();
    let error = cri.run_pod_with("wrong", LARGE_HANDLER).unwrap_err();
    for word in ["orlop-large.toml", "kernal"] {
        assert!(error.message().contains(word), "{}", error.message());
    }
    fs::remove_file(stage.node.large_config()).unwrap();
    stage.leaves_nothing();
}

#[test]
fn the_vms_of_pods_are_listed_with_their_names() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let orlop = |arguments: &[&str]| {
        let mut command = Command::new(build::programs_directory().join("orlop"));
        command.args(arguments);
        command.env("ORLOP_CONFIG", stage.node.orlop_config_file());
        let done = command.output().unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {error}");
        String::from_utf8(done.stdout).unwrap()
    };
    let pod = cri.run_pod("listed").unwrap();
    let name = &pod.id[..16];
    assert!(!orlop(&["ps"]).contains(name), "there is no VM yet");
    cri.run(&pod, &Container::busybox("main", WAIT)).unwrap();
    let list = orlop(&["ps"]);
    let line = list.lines().find(|line| line.starts_with(name)).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        words[1..6],
        ["stories", "listed", "running", "1", "256M"],
        "{list}"
    );
    // By the beginning of its name, as by a VM's own.
    let described = orlop(&["inspect", "--output", "json", &name[..8]]);
    assert!(described.contains(&pod.id), "{described}");
    cri.remove_pod(&pod).unwrap();
    assert!(!orlop(&["ps"]).contains(name), "it is still listed");
    stage.leaves_nothing();
}

/// Waits for what a guest does in its own time.
fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(180);
    while !holds() {
        assert!(Instant::now() < end, "not within three minutes");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn annotated(cri: &Cri, annotations: &[(&str, &str)]) -> Result<Pod, tonic::Status> {
    cri.run_pod_changed("annotated", HANDLER, |config: &mut v1::PodSandboxConfig| {
        let pairs = annotations
            .iter()
            .map(|&(key, value)| (key.into(), value.into()));
        config.annotations = pairs.collect();
    })
}

/// How many processors a container sees.
fn vcpus(cri: &Cri, container: &str) -> u32 {
    let text = output(cri, container, "grep -c ^processor /proc/cpuinfo");
    text.trim().parse().unwrap()
}

/// A line of the guest's `/proc/meminfo`, in MiB.
fn memory(cri: &Cri, container: &str, what: &str) -> u64 {
    let text = output(cri, container, &format!("grep ^{what}: /proc/meminfo"));
    let kib: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib >> 10
}
