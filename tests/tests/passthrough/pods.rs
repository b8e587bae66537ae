//! A container that is given a device of the host's by its node, as device plugins do it.

use orlop_testbed::cache::Cache;
use orlop_testbed::containerd::{OrlopConfig, RUNTIME};
use orlop_testbed::host::devices::DISK;
use orlop_testbed::image;

use super::common::{Stage, processes, unique, with_config};
use super::guest::{LIMIT, until};
use super::pci::{self, HostDisk};
use super::stage;

const BYTES: u64 = 1 << 20;

#[test]
fn a_container_with_a_group_s_node_has_its_disk_and_no_other_container_meanwhile() {
    let Some(stage) = stage() else { return };
    // Our own kernel has no drivers but those of a VM's devices.
    let cache = Cache::open().unwrap();
    let debian = |config: &mut OrlopConfig| config.guest = cache.debian_boots();
    with_config(&stage, debian, || shares(&stage));
    stage.leaves_nothing();
}

fn shares(stage: &Stage) {
    let disk = HostDisk::take(DISK);
    disk.works();
    let sum = disk.sum(BYTES);
    disk.give_away();
    let node = pci::node(DISK);
    let node = node.to_str().unwrap();
    let line = |name: &str, script: &str| -> Vec<String> {
        let words = ["run", "--rm", "--runtime", RUNTIME, "--device", node];
        let rest = [image::BUSYBOX, name, "sh", "-c", script];
        words.iter().chain(&rest).map(ToString::to_string).collect()
    };
    let (first, second) = (unique("disk"), unique("disk"));
    let script = format!(
        "head -c {BYTES} /dev/nvme0n1 | sha256sum
         printf 'from the pod' | dd of=/dev/nvme0n1 conv=notrunc,fsync 2>/dev/null; sleep 30"
    );
    let ctr = |words: &[String]| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        stage.node.ctr_start("default", &words, &[]).unwrap()
    };
    let running = ctr(&line(&first, &script));
    until("its VM has the group", || {
        let mut vmms = processes("orlop").into_iter();
        vmms.any(|id| pci::is_open(DISK, id))
    });
    let refused = ctr(&line(&second, "true")).wait(LIMIT).unwrap();
    assert_ne!(refused.status, 0);
    let error = refused.error();
    assert!(error.contains("in use"), "{error}");
    let done = running.wait(LIMIT).unwrap();
    assert_eq!(done.status, 0, "{}", done.error());
    assert!(done.output().starts_with(&sum), "{}", done.output());
    let disk = HostDisk::take(DISK);
    assert_eq!(disk.first(12), b"from the pod");
    disk.works();
}
