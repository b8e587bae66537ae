//! What a pod keeps: volumes of the pod's, of the node's, of claims.

use orlop_testbed::cluster::NODE;
use serde_json::json;

use crate::stage::{LIMIT, WAIT, pod, shell, stage, template};

#[test]
fn an_empty_directory_is_shared_by_the_containers_and_keeps_to_its_limit() {
    let Some(stage) = stage() else { return };
    let with_volumes = |mut container: serde_json::Value| {
        container["volumeMounts"] = json!([
            { "name": "disk", "mountPath": "/disk" }, { "name": "memory", "mountPath": "/memory" },
        ]);
        container
    };
    let spec = json!({ "volumes": [
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "4Mi" } },
    ]});
    let containers = json!([
        with_volumes(shell("one", WAIT)),
        with_volumes(shell("other", WAIT))
    ]);
    stage.apply(&[pod("pair", containers, spec)]);
    stage.wait_until_ready("pair");
    let kubectl = &stage.kubectl;
    let inside = |container: &str, script: &str| {
        kubectl
            .output(
                &["exec", "pair", "-c", container, "--", "sh", "-c", script],
                &[],
            )
            .unwrap()
    };
    inside("one", "echo from one >/disk/x; echo too >/memory/y");
    assert_eq!(
        inside("other", "cat /disk/x /memory/y").stdout,
        b"from one\ntoo\n"
    );
    let full = inside("one", "dd if=/dev/zero of=/memory/much bs=1M count=8");
    assert!(!full.status.success(), "8 MiB went into 4");
}

#[test]
fn a_stateful_set_finds_its_data_again() {
    let Some(stage) = stage() else { return };
    let name = format!("volume-{}", std::process::id());
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": "16Mi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "testbed",
            "persistentVolumeReclaimPolicy": "Delete",
            "hostPath": { "path": format!("/run/{name}"), "type": "DirectoryOrCreate" },
        },
    });
    let mut container = shell("main", &format!("echo life >>/data/lives; {WAIT}"));
    container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "store" },
        "spec": {
            "serviceName": "store", "replicas": 1, "selector": { "matchLabels": { "app": "store" } },
            "template": template("store", json!([container]), json!({})),
            "volumeClaimTemplates": [{
                "metadata": { "name": "data" },
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": "testbed",
                    "resources": { "requests": { "storage": "16Mi" } },
                },
            }],
        },
    });
    stage.apply(&[volume, set]);
    stage.wait_until_ready("store-0");
    let first = stage.kubectl.get(&["pod", "store-0"]).unwrap().unwrap();
    stage
        .kubectl
        .run(&["delete", "pod", "store-0", "--wait"])
        .unwrap();
    stage.wait_for("store-0", "is another one", |pod| {
        pod["metadata"]["uid"] != first["metadata"]["uid"]
    });
    stage.wait_until_ready("store-0");
    assert_eq!(stage.inside("store-0", "cat /data/lives"), "life\nlife\n");
    assert_eq!(stage.inside("store-0", "hostname"), "store-0\n");
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    stage
        .kubectl
        .run(&[
            "delete",
            "statefulset",
            "store",
            "--cascade=foreground",
            &limit,
        ])
        .unwrap();
    stage
        .kubectl
        .run(&["delete", "pvc", "--all", &limit])
        .unwrap();
    stage.kubectl.run(&["delete", "pv", &name, &limit]).unwrap();
}

#[test]
fn a_volume_of_the_mode_block_is_a_disk_of_the_guest() {
    let Some(stage) = stage() else { return };
    // An ordinary container that may do everything makes a block device on the node.
    let make = "truncate -s 16M /node/disk; losetup /dev/loop7 /node/disk; echo made >/made; \
                trap 'losetup -d /dev/loop7; exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let mut container = shell("main", make);
    container["securityContext"] = json!({ "privileged": true });
    container["readinessProbe"] =
        json!({ "exec": { "command": ["test", "-e", "/made"] }, "timeoutSeconds": 30 });
    container["volumeMounts"] = json!([{ "name": "node", "mountPath": "/node" }]);
    let maker = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "maker" },
        "spec": { "containers": [container], "volumes": [{ "name": "node", "emptyDir": {} }] },
    });
    stage.apply(&[maker]);
    stage.wait_until_ready("maker");

    let name = format!("block-{}", std::process::id());
    let on_node = json!({ "nodeSelectorTerms": [{ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] },
    ]}]});
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": "16Mi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "block",
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Block",
            "local": { "path": "/dev/loop7" }, "nodeAffinity": { "required": on_node },
        },
    });
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "raw" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "block", "volumeMode": "Block",
            "resources": { "requests": { "storage": "16Mi" } },
        },
    });
    let mut container = shell("main", WAIT);
    container["volumeDevices"] = json!([{ "name": "raw", "devicePath": "/dev/raw" }]);
    let spec =
        json!({ "volumes": [{ "name": "raw", "persistentVolumeClaim": { "claimName": "raw" } }] });
    stage.apply(&[volume, claim, pod("guest", json!([container]), spec)]);
    stage.wait_until_ready("guest");
    assert_eq!(
        stage.inside("guest", "blockdev --getsize64 /dev/raw"),
        "16777216\n"
    );
    stage.inside(
        "guest",
        "echo from the guest | dd of=/dev/raw conv=fsync 2>&1",
    );
    assert_eq!(
        stage.inside("maker", "head -n 1 /node/disk"),
        "from the guest\n"
    );
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    for what in ["pod/guest", "pvc/raw", "pod/maker"] {
        stage.kubectl.run(&["delete", what, &limit]).unwrap();
    }
    stage.kubectl.run(&["delete", "pv", &name, &limit]).unwrap();
}
