//! What becomes of pods when something happens to their node.

use orlop_testbed::cluster::Files;
use orlop_testbed::cluster::NODE;
use orlop_testbed::cluster::kubectl::has_condition;
use orlop_testbed::cluster::orders::Order;
use orlop_testbed::host;
use orlop_testbed::stories::skip;
use serde_json::{Value, json};

use crate::stage::{BOOT_ID, LIMIT, Stage, WAIT, phase, pod, restarts, shell, stage, template};

#[test]
fn pods_run_on_while_the_kubelet_and_containerd_start_again() {
    let Some(stage) = stage() else { return };
    let talks = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 1 & wait $!; done";
    stage.apply(&[pod("lasting", json!([shell("main", talks)]), json!({}))]);
    stage.wait_until_ready("lasting");
    let guest = stage.inside("lasting", BOOT_ID);
    for order in [Order::RestartKubelet, Order::RestartContainerd] {
        order.give(&Files::attach().unwrap()).unwrap();
        wait_for_node(&stage);
        assert_eq!(
            again(&stage, "lasting", BOOT_ID),
            guest,
            "{order:?}: another guest"
        );
        // What it says meanwhile and from now on is in its log.
        let before = stage.kubectl.run(&["logs", "lasting"]).unwrap();
        stage.inside("lasting", "sleep 3");
        let after = stage.kubectl.run(&["logs", "lasting"]).unwrap();
        assert!(after.starts_with(&before) && after.len() > before.len());
        let numbers: Vec<u32> = after.lines().map(|line| line.parse().unwrap()).collect();
        let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
        assert_eq!(numbers, expected, "{order:?}: something of the log is lost");
    }
    let now = stage.kubectl.get(&["pod", "lasting"]).unwrap().unwrap();
    assert_eq!(restarts(&now), 0);
    // Another one can still come.
    stage.apply(&[pod("later", json!([shell("main", WAIT)]), json!({}))]);
    stage.wait_until_ready("later");
}

#[test]
fn pods_come_back_with_their_volumes_when_the_nodes_power_has_failed() {
    let Some(stage) = stage() else { return };
    if host::kvm::is_hardware() {
        skip("the node is this machine, which is not switched off for a story");
        return;
    }
    let mut container = shell("main", &format!("echo life >>/kept/lives; sync; {WAIT}"));
    container["volumeMounts"] = json!([{ "name": "kept", "mountPath": "/kept" }]);
    let spec = json!({ "volumes": [{ "name": "kept", "emptyDir": {} }] });
    stage.apply(&[pod("back", json!([container]), spec)]);
    stage.wait_until_ready("back");
    let guest = stage.inside("back", BOOT_ID);
    Order::Reboot.give(&Files::attach().unwrap()).unwrap();
    stage.wait_for("back", "has started again", |pod| {
        restarts(pod) > 0 && has_condition(pod, "Ready")
    });
    assert_ne!(again(&stage, "back", BOOT_ID), guest, "the same guest");
    assert_eq!(stage.inside("back", "cat /kept/lives"), "life\nlife\n");
}

#[test]
fn a_node_that_is_drained_has_its_pods_again_when_it_may() {
    let Some(stage) = stage() else { return };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "moved" },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "moved" } },
            "template": template("moved", json!([shell("main", WAIT)]), json!({})),
        },
    });
    stage.apply(&[deployment]);
    let available = |replicas: u64| {
        let what = format!("deployment with {replicas} available");
        let looked = stage.kubectl.wait_for(&what, LIMIT, |kubectl| {
            let deployment = kubectl.get(&["deployment", "moved"])?;
            let is = |deployment: &Value| {
                let found = deployment["status"]["availableReplicas"].as_u64();
                found.unwrap_or(0) == replicas
            };
            Ok(deployment.filter(is))
        });
        looked.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
    };
    available(1);
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    let drain = ["drain", NODE, "--ignore-daemonsets", "--force", &limit];
    stage.kubectl.run(&drain).unwrap();
    available(0);
    stage.kubectl.run(&["uncordon", NODE]).unwrap();
    available(1);
}

#[test]
fn a_pod_that_takes_more_of_the_nodes_disk_than_it_may_is_evicted() {
    let Some(stage) = stage() else { return };
    let mut container = shell("main", WAIT);
    container["volumeMounts"] = json!([{ "name": "disk", "mountPath": "/disk" }]);
    let spec = json!({ "volumes": [{ "name": "disk", "emptyDir": { "sizeLimit": "4Mi" } }] });
    stage.apply(&[pod("greedy", json!([container]), spec)]);
    stage.wait_until_ready("greedy");
    stage.inside(
        "greedy",
        "dd if=/dev/zero of=/disk/much bs=1M count=12 2>&1; sync",
    );
    let pod = stage.wait_for("greedy", "is evicted", |pod| phase(pod) == "Failed");
    assert_eq!(pod["status"]["reason"], "Evicted", "{}", pod["status"]);
}

pub fn wait_for_node(stage: &Stage) {
    let ready = stage
        .kubectl
        .wait_for("node that is ready", LIMIT, |kubectl| {
            let node = kubectl.get(&["node", NODE])?;
            Ok(node.filter(|node| has_condition(node, "Ready")))
        });
    ready.unwrap();
}

/// Runs a script in a pod as soon as the kubelet takes that again.
pub fn again(stage: &Stage, pod: &str, script: &str) -> String {
    let said = stage
        .kubectl
        .wait_for("answer of the pod", LIMIT, |kubectl| {
            let line = ["exec", pod, "--", "sh", "-c", script];
            let done = kubectl.output(&line, &[])?;
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            Ok(done.status.success().then_some(said))
        });
    said.unwrap()
}
