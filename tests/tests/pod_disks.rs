//! Block devices of the machine in pods: what Kubernetes calls a volume of the mode `Block`.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{output, stage};
use orlop_testbed::containerd::HANDLER;
use orlop_testbed::containerd::cri::{Container, v1};

/// A command that goes on until it is told to end, and then ends at once.
const WAIT: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
const SIZE: u64 = 8 << 20;

/// A block device of this machine, with a file behind it.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    fn new(directory: &Path, name: &str) -> Self {
        let file = directory.join(name);
        File::create(&file).unwrap().set_len(SIZE).unwrap();
        run("modprobe", &["loop"]);
        let device = run("losetup", &["--find"]).trim().to_owned();
        run("losetup", &[&device, file.to_str().unwrap()]);
        Self { device, file }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.device]);
    }
}

#[test]
fn a_block_device_is_a_disk_of_the_containers_that_it_is_given_to() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir_in("/run").unwrap();
    let disk = Loop::new(directory.path(), "disk");
    fs::write(&disk.file, on_disk("from the host")).unwrap();
    let cri = stage.cri();
    let pod = cri.run_pod("block").unwrap();
    let with = |name: &'static str, devices| {
        let container = Container {
            devices,
            ..Container::busybox(name, WAIT)
        };
        cri.run(&pod, &container)
    };
    let writes = [("/dev/data", &*disk.device, "rwm")];
    let writer = with("writer", &writes).unwrap();
    let size = output(&cri, &writer, "blockdev --getsize64 /dev/data");
    assert_eq!(size, format!("{SIZE}\n"));
    assert_eq!(
        output(&cri, &writer, "head -c 13 /dev/data"),
        "from the host"
    );
    output(
        &cri,
        &writer,
        "printf 'from the guest' | dd of=/dev/data conv=notrunc,fsync 2>/dev/null",
    );
    let there = fs::read(&disk.file).unwrap();
    assert!(
        there.starts_with(b"from the guest"),
        "it is not on the disk"
    );

    // Another container of the pod has the same disk, and may only read.
    let reads = [("/dev/same", &*disk.device, "r")];
    let reader = with("reader", &reads).unwrap();
    assert_eq!(
        output(&cri, &reader, "head -c 14 /dev/same"),
        "from the guest"
    );
    let disks = "ls -d /sys/block/vd* 2>/dev/null | wc -l";
    assert_eq!(output(&cri, &reader, disks), "1\n");

    // It goes with the last that has it.
    for id in [&writer, &reader] {
        cri.stop(id, 5).unwrap();
        cri.remove(id).unwrap();
    }
    let other = with("other", &[]).unwrap();
    assert_eq!(output(&cri, &other, disks), "0\n");
    let again = with("again", &reads).unwrap();
    let write = "echo no >/dev/same";
    assert_ne!(cri.exec(&again, &["sh", "-c", write]).unwrap().exit_code, 0);
    let error = with("late", &writes).unwrap_err();
    assert!(error.message().contains("read-only already"), "{error}");
    cri.remove_pod(&pod).unwrap();
    drop((disk, directory));
    stage.leaves_nothing();
}

#[test]
fn more_disks_than_a_vm_has_room_for_are_refused_and_the_rest_stay() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir_in("/run").unwrap();
    let name = |n: usize| directory.path().join(format!("disk{n}"));
    let disks: Vec<_> = (0..9)
        .map(|n| {
            Loop::new(
                directory.path(),
                name(n).file_name().unwrap().to_str().unwrap(),
            )
        })
        .collect();
    let places: Vec<_> = (0..9).map(|n| format!("/dev/data{n}")).collect();
    let devices: Vec<_> = places
        .iter()
        .zip(&disks)
        .map(|(place, disk)| (&**place, &*disk.device, "rw"))
        .collect();
    let cri = stage.cri();
    let pod = cri.run_pod("many").unwrap();
    let all = Container {
        devices: &devices[..8],
        ..Container::busybox("all", WAIT)
    };
    let started = Instant::now();
    let all = cri.run(&pod, &all).unwrap();
    println!(
        "a container with eight disks is there after {:?}",
        started.elapsed()
    );
    let script = "for n in 0 1 2 3 4 5 6 7; do echo $n | dd of=/dev/data$n conv=notrunc,fsync 2>&1 || exit 1; done";
    output(&cri, &all, script);
    for (n, disk) in disks.iter().take(8).enumerate() {
        let there = fs::read(&disk.file).unwrap();
        assert_eq!(there[..2], *format!("{n}\n").as_bytes());
    }
    let one_more = Container {
        devices: &devices[8..],
        ..Container::busybox("more", WAIT)
    };
    let error = cri.run(&pod, &one_more).unwrap_err();
    for words in ["/dev/data8", "no place for another device"] {
        assert!(error.message().contains(words), "{}", error.message());
    }
    output(&cri, &all, script);
    cri.remove_pod(&pod).unwrap();
    drop((disks, directory));
    stage.leaves_nothing();
}

#[test]
fn a_privileged_container_has_none_of_the_machines_disks() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir_in("/run").unwrap();
    let disk = Loop::new(directory.path(), "disk");
    let cri = stage.cri();
    let privileged = |config: &mut v1::PodSandboxConfig| {
        config.linux.as_mut().unwrap().security_context = Some(v1::LinuxSandboxSecurityContext {
            privileged: true,
            ..v1::LinuxSandboxSecurityContext::default()
        });
    };
    let pod = cri.run_pod_changed("mighty", HANDLER, privileged).unwrap();
    let container = Container {
        privileged: true,
        ..Container::busybox("main", WAIT)
    };
    let main = cri.run(&pod, &container).unwrap();
    let blocks = "ls -l /dev | grep -c ^b; ls -d /sys/block/vd* 2>/dev/null | wc -l";
    assert_eq!(output(&cri, &main, blocks), "0\n0\n");
    cri.remove_pod(&pod).unwrap();
    drop((disk, directory));
    stage.leaves_nothing();
}

/// A sector that begins with `text`.
fn on_disk(text: &str) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(done.stdout).unwrap()
}
