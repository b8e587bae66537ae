//! The life of a pod: its probes, its containers' order, its end.

use std::process::Stdio;

use orlop_testbed::cluster::kubectl::has_condition;
use orlop_testbed::setup::build;
use serde_json::{Value, json};

use crate::stage::{BOOT_ID, LIMIT, WAIT, phase, pod, restarts, shell, stage};

#[test]
fn a_container_that_fails_its_liveness_probe_starts_again_in_the_same_guest() {
    let Some(stage) = stage() else { return };
    let mut container = shell("main", &format!("touch /tmp/alive; {WAIT}"));
    container["livenessProbe"] = json!({
        "exec": { "command": ["test", "-e", "/tmp/alive"] },
        "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 2,
    });
    container["startupProbe"] = json!({
        "exec": { "command": ["test", "-e", "/tmp/alive"] },
        "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 30,
    });
    stage.apply(&[pod("mortal", json!([container]), json!({}))]);
    stage.wait_until_ready("mortal");
    let guest = stage.inside("mortal", BOOT_ID);

    stage.inside("mortal", "rm /tmp/alive");
    stage.wait_for("mortal", "has started again", |pod| restarts(pod) == 1);
    stage.wait_until_ready("mortal");
    assert_eq!(
        stage.inside("mortal", BOOT_ID),
        guest,
        "the guest is another one"
    );
}

#[test]
fn a_pod_is_ready_when_what_it_serves_answers() {
    let Some(stage) = stage() else { return };
    let serve = "mkdir /www; busybox httpd -h /www -p 8080; touch /started; ".to_owned() + WAIT;
    let mut container = shell("main", &serve);
    container["readinessProbe"] = json!({
        "httpGet": { "path": "/ready", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 30,
    });
    stage.apply(&[pod("server", json!([container]), json!({}))]);
    stage.wait_for("server", "runs", |pod| phase(pod) == "Running");
    stage.inside("server", "while ! test -e /started; do sleep 1; done");
    let now = stage.kubectl.get(&["pod", "server"]).unwrap().unwrap();
    assert_eq!(
        now["status"]["containerStatuses"][0]["ready"], false,
        "ready too soon"
    );
    stage.inside("server", "echo yes >/www/ready");
    stage.wait_until_ready("server");
}

#[test]
fn a_pod_is_ready_when_its_service_says_by_grpc_that_it_is_well() {
    let Some(stage) = stage() else { return };
    let program = build::programs_directory().join("orlop-story-peer");
    let mut container = shell("main", "exec /peer health 9000 /tmp/well");
    container["volumeMounts"] = json!([{ "name": "peer", "mountPath": "/peer", "readOnly": true }]);
    container["readinessProbe"] =
        json!({ "grpc": { "port": 9000 }, "periodSeconds": 1, "timeoutSeconds": 30 });
    container["livenessProbe"] =
        json!({ "tcpSocket": { "port": 9000 }, "initialDelaySeconds": 30, "timeoutSeconds": 30 });
    let spec = json!({
        "volumes": [{ "name": "peer", "hostPath": { "path": program, "type": "File" } }],
    });
    stage.apply(&[pod("well", json!([container]), spec)]);
    stage.wait_for("well", "runs", |pod| phase(pod) == "Running");
    let heard = |text: &str| {
        stage
            .kubectl
            .wait_for("event of the probe", LIMIT, |kubectl| {
                let events = kubectl.run(&["get", "events", "--output=jsonpath={..message}"])?;
                Ok(events.contains(text).then_some(()))
            })
            .unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
    };
    heard("NOT_SERVING");
    let now = stage.kubectl.get(&["pod", "well"]).unwrap().unwrap();
    assert!(!has_condition(&now, "Ready"), "ready too soon");
    stage.inside("well", "touch /tmp/well");
    stage.wait_until_ready("well");
    stage.inside("well", "rm /tmp/well");
    stage.wait_for("well", "is not ready", |pod| !has_condition(pod, "Ready"));
    let now = stage.kubectl.get(&["pod", "well"]).unwrap().unwrap();
    assert_eq!(restarts(&now), 0, "its port answers");
}

#[test]
fn init_containers_come_first_and_a_sidecar_stays() {
    let Some(stage) = stage() else { return };
    let shared = json!([{ "name": "shared", "mountPath": "/shared" }]);
    let with_volume = |mut container: Value| {
        container["volumeMounts"] = shared.clone();
        container
    };
    let mut sidecar = with_volume(shell(
        "sidecar",
        &format!("echo sidecar >>/shared/order; {WAIT}"),
    ));
    sidecar["restartPolicy"] = "Always".into();
    let order = "while ! grep -q sidecar /shared/order; do sleep 1; done; echo main >>/shared/order; cat /shared/order";
    let spec = json!({
        "restartPolicy": "Never",
        "volumes": [{ "name": "shared", "emptyDir": {} }],
        "initContainers": [with_volume(shell("first", "echo first >>/shared/order")), sidecar],
    });
    stage.apply(&[pod(
        "ordered",
        json!([with_volume(shell("main", order))]),
        spec,
    )]);
    // The sidecar does not keep the pod from its end.
    stage.wait_for("ordered", "has ended", |pod| phase(pod) == "Succeeded");
    let said = stage
        .kubectl
        .run(&["logs", "ordered", "--container=main"])
        .unwrap();
    assert_eq!(said, "first\nsidecar\nmain\n");
}

#[test]
fn a_pod_that_is_deleted_does_what_it_has_to_before_it_goes() {
    let Some(stage) = stage() else { return };
    let script =
        "trap 'echo told to end; exit 0' TERM; echo begun; while :; do sleep 1 & wait $!; done";
    let mut container = shell("main", script);
    container["lifecycle"] = json!({ "preStop": { "exec": {
        "command": ["sh", "-c", "echo before the end >/proc/1/fd/1; sleep 1"],
    }}});
    let spec = json!({ "terminationGracePeriodSeconds": 120 });
    stage.apply(&[pod("polite", json!([container]), spec)]);
    stage.wait_until_ready("polite");
    let mut logs = stage.kubectl.command();
    logs.args(["logs", "--follow", "polite"])
        .stdout(Stdio::piped());
    let logs = logs.spawn().unwrap();
    stage
        .kubectl
        .run(&["delete", "pod", "polite", "--wait"])
        .unwrap();
    let said = logs.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said, "begun\nbefore the end\ntold to end\n");
}
