//! A PCI device of the node's by dynamic resource allocation: a pod says what it wants of it, the scheduler chooses, the node hands it out.

use orlop_testbed::cluster::orders::Order;
use orlop_testbed::cluster::{Files, NODE};
use orlop_testbed::host;
use orlop_testbed::host::devices::{DISK, DISK_SIZE};
use orlop_testbed::stories::skip;
use serde_json::{Value, json};

use crate::devices::{CLASS, Plugin, RESOURCE, delete, scheduled, user};
use crate::node::{again, wait_for_node};
use crate::stage::{BOOT_ID, LIMIT, Stage, WAIT, phase, pod, shell, stage};

#[test]
fn a_pod_selects_a_claimed_disk_by_what_it_is_and_another_one_waits_for_it() {
    let Some(stage) = stage() else { return };
    if host::kvm::is_hardware() {
        skip("the node is this machine, whose devices are not given away for a story");
        return;
    }
    let plugin = Plugin::install(&stage, "deploy/devices-dra");
    plugin.orlop(&format!("claim nvme {DISK}"));
    let slice = wait_for_slice(&stage, |slice| devices(slice).len() == 1);
    let attributes = &devices(&slice)[0]["attributes"];
    assert_eq!(
        attributes["resource.kubernetes.io/pciBusID"]["string"],
        DISK
    );
    assert_eq!(attributes["claim"]["string"], "nvme");

    // Who has its account without its pod on the node, which the token names.
    let account = "--as=system:serviceaccount:orlop-system:orlop-node";
    let foreign = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": "foreign" },
        "spec": {
            "driver": "pci.orlop.dev", "nodeName": NODE,
            "pool": { "name": NODE, "generation": 1, "resourceSliceCount": 1 },
        },
    });
    let line = ["create", account, "--filename", "-"];
    let made = stage.kubectl.output(&line, foreign.to_string().as_bytes());
    let made = made.unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success());
    assert!(said.contains("may only write its own node's"), "{said}");

    stage.apply(&[template()]);
    stage.apply(&[claimant("first")]);
    stage.wait_until_ready("first");
    let size = stage.inside("first", "cat /sys/class/block/nvme0n1/size");
    assert_eq!(size.trim(), (DISK_SIZE / 512).to_string());
    let write = "printf 'from the first' | dd of=/dev/nvme0n1 conv=notrunc,fsync 2>&1";
    stage.inside("first", write);

    // A kubelet that starts has forgotten the driver, and removes what its node offers.
    let guest = stage.inside("first", BOOT_ID);
    Order::RestartKubelet
        .give(&Files::attach().unwrap())
        .unwrap();
    wait_for_slice(&stage, |another| {
        another["metadata"]["uid"] != slice["metadata"]["uid"] && devices(another).len() == 1
    });
    wait_for_node(&stage);
    assert_eq!(again(&stage, "first", BOOT_ID), guest);

    // What asks for a resource, as of a device plugin, is served by a class that stands for it.
    let class = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": { "name": "nvme" },
        "spec": {
            "selectors": [{ "cel": { "expression": selector() } }],
            "extendedResourceName": RESOURCE,
        },
    });
    stage.apply(&[class]);
    stage.apply(&[user("second")]);
    stage.wait_for("second", "waits", |pod| {
        phase(pod) == "Pending" && scheduled(pod).is_some_and(|why| why.contains("cannot allocate"))
    });
    delete(&stage, "first");
    stage.wait_until_ready("second");
    let read = stage.inside("second", "head -c 14 /dev/nvme0n1");
    assert_eq!(read, "from the first");
    delete(&stage, "second");

    plugin.orlop("release nvme");
    wait_for_slice(&stage, |slice| devices(slice).is_empty());
    stage
        .kubectl
        .run(&["delete", "deviceclass", "nvme"])
        .unwrap();
}

/// What selects the disk of all that is claimed.
fn selector() -> Value {
    "device.driver == 'pci.orlop.dev' && device.attributes['pci.orlop.dev'].claim == 'nvme'".into()
}

/// What pods' claims are made of.
fn template() -> Value {
    let request = json!({
        "name": "disk",
        "exactly": { "deviceClassName": "pci.orlop.dev", "selectors": [{ "cel": { "expression": selector() } }] },
    });
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": { "name": "disk" },
        "spec": { "spec": { "devices": { "requests": [request] } } },
    })
}

/// A pod with a claim of its own.
fn claimant(name: &str) -> Value {
    let mut container = shell("main", WAIT);
    container["resources"] = json!({ "claims": [{ "name": "disk" }] });
    let claims = json!([{ "name": "disk", "resourceClaimTemplateName": "disk" }]);
    let spec = json!({ "runtimeClassName": CLASS, "resourceClaims": claims });
    pod(name, json!([container]), spec)
}

/// Waits until the slice of the node's devices is as `is` wants it.
fn wait_for_slice(stage: &Stage, is: impl Fn(&Value) -> bool) -> Value {
    let selector = format!("--field-selector=spec.driver=pci.orlop.dev,spec.nodeName={NODE}");
    let offered = stage
        .kubectl
        .wait_for("slice of the node's devices", LIMIT, |kubectl| {
            let slices = kubectl.get(&["resourceslices", &selector])?;
            let first = slices.and_then(|slices| slices["items"].get(0).cloned());
            Ok(first.filter(|slice| is(slice)))
        });
    offered.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()))
}

fn devices(slice: &Value) -> &[Value] {
    let devices = slice["spec"]["devices"].as_array();
    devices.map_or(&[], Vec::as_slice)
}
