//! A PCI device of the node's, claimed there, is a resource that pods ask for.

use orlop_testbed::cluster::kubectl::Kubectl;
use orlop_testbed::cluster::orders::Order;
use orlop_testbed::cluster::{Files, NODE};
use orlop_testbed::containerd::LARGE_HANDLER;
use orlop_testbed::host;
use orlop_testbed::host::devices::{DISK, DISK_SIZE};
use orlop_testbed::image::BUSYBOX;
use orlop_testbed::setup::build;
use orlop_testbed::stories::skip;
use serde_json::{Value, json};

use crate::stage::{LIMIT, Stage, WAIT, phase, pod, shell, stage};

/// The resource that the claim `nvme` is.
pub const RESOURCE: &str = "pci.orlop.dev/nvme";

/// Where the manifests of the installation put what they make.
const NAMESPACE: &str = "orlop-system";

/// The runtime class whose pods have a kernel with drivers of hardware.
pub const CLASS: &str = "orlop-devices";

#[test]
fn a_claimed_disk_is_one_pods_at_a_time_and_is_kept_over_the_nodes_next_boot() {
    let Some(stage) = stage() else { return };
    if host::kvm::is_hardware() {
        skip("the node is this machine, whose devices are not given away for a story");
        return;
    }
    let plugin = Plugin::install(&stage, "deploy/devices");
    plugin.orlop(&format!("claim nvme {DISK}"));
    wait_for_resource(&stage);

    stage.apply(&[user("first")]);
    stage.wait_until_ready("first");
    let size = stage.inside("first", "cat /sys/class/block/nvme0n1/size");
    assert_eq!(size.trim(), (DISK_SIZE / 512).to_string());
    let write = "printf 'from the first' | dd of=/dev/nvme0n1 conv=notrunc,fsync 2>&1";
    stage.inside("first", write);
    stage.apply(&[user("second")]);
    let waits = stage.wait_for("second", "waits", |pod| {
        phase(pod) == "Pending" && scheduled(pod).is_some()
    });
    let why = scheduled(&waits).unwrap();
    assert!(why.contains(&format!("Insufficient {RESOURCE}")), "{why}");
    delete(&stage, "first");
    stage.wait_until_ready("second");
    let read = stage.inside("second", "head -c 14 /dev/nvme0n1");
    assert_eq!(read, "from the first");
    delete(&stage, "second");

    Order::Reboot.give(&Files::attach().unwrap()).unwrap();
    stage.apply(&[user("third")]);
    stage.wait_until_ready("third");
    // Its disks are new ones when a virtual host boots; what was claimed is as it was.
    let again = stage.inside("third", "cat /sys/class/block/nvme0n1/size");
    assert_eq!(again, size);
    delete(&stage, "third");
    plugin.orlop("release nvme");
}

/// A pod that asks for the disk.
pub fn user(name: &str) -> Value {
    let mut container = shell("main", WAIT);
    container["resources"] = json!({ "limits": { RESOURCE: 1 } });
    pod(
        name,
        json!([container]),
        json!({ "runtimeClassName": CLASS }),
    )
}

/// Why a pod has no node, if it has none.
pub fn scheduled(pod: &Value) -> Option<&str> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let scheduled = conditions.iter().find(|it| it["type"] == "PodScheduled")?;
    scheduled["message"].as_str()
}

fn wait_for_resource(stage: &Stage) {
    let offered = stage
        .kubectl
        .wait_for("resource of the node's", LIMIT, |kubectl| {
            let node = kubectl.get(&["node", NODE])?;
            Ok(node.filter(|node| node["status"]["allocatable"][RESOURCE] == "1"))
        });
    offered.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
}

pub fn delete(stage: &Stage, pod: &str) {
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    let line = ["delete", "pod", pod, "--wait", &limit];
    stage.kubectl.run(&line).unwrap();
}

/// orlop-node, as its manifests have it, but that the node's programs are where they were built; a runtime class whose pods can use devices; and
/// a pod that enters the node. All go with the story.
pub struct Plugin<'s> {
    stage: &'s Stage,
    /// For what is in no story's namespace.
    kubectl: Kubectl,
    manifest: String,
}

impl<'s> Plugin<'s> {
    /// By the manifests of a directory.
    pub fn install(stage: &'s Stage, directory: &str) -> Self {
        let kubectl = Kubectl::attach().unwrap();
        let manifest = kubectl.run(&["kustomize", directory]).unwrap();
        let image = manifest
            .lines()
            .find_map(|line| line.trim().strip_prefix("image: "))
            .unwrap();
        let programs = build::programs_directory().display().to_string();
        let manifest = manifest
            .replace(image, BUSYBOX)
            .replace("- nsenter\n", "- /bin/busybox\n        - nsenter\n")
            .replace("exec nsenter", "exec busybox nsenter")
            .replace("/opt/orlop/current/bin", &programs);
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE },
        });
        kubectl.apply(&namespace.to_string()).unwrap();
        kubectl.apply(&manifest).unwrap();
        let class = json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": CLASS },
            "handler": LARGE_HANDLER, "overhead": { "podFixed": { "memory": "128Mi" } },
        });
        kubectl.apply(&class.to_string()).unwrap();
        let mut admin = shell("main", WAIT);
        admin["securityContext"] = json!({ "privileged": true });
        let mut admin = pod("admin", json!([admin]), json!({ "hostPID": true }));
        admin["spec"]["runtimeClassName"] = Value::Null;
        stage.apply(&[admin]);
        stage.wait_until_ready("admin");
        Self {
            stage,
            kubectl,
            manifest,
        }
    }

    /// Runs `orlop pci` on the node.
    pub fn orlop(&self, arguments: &str) {
        let orlop = build::programs_directory().join("orlop");
        let line = format!(
            "busybox nsenter -t 1 -m {} pci {arguments} 2>&1",
            orlop.display()
        );
        println!("{}", self.stage.inside("admin", &line));
    }
}

impl Drop for Plugin<'_> {
    fn drop(&mut self) {
        let line = ["delete", "--filename", "-", "--wait"];
        let gone = self.kubectl.run_with(&line, self.manifest.as_bytes());
        let class = ["delete", "runtimeclass", CLASS, "--ignore-not-found"];
        let rest = ["delete", "namespace", NAMESPACE, "--wait"];
        let gone = gone.and(self.kubectl.run(&class));
        if let Err(error) = gone.and(self.kubectl.run(&rest)) {
            // Not to panic while the story does: what is left is told when the node ends.
            eprintln!("{error:#}");
        }
    }
}
