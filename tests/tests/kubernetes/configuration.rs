//! What a pod is told: ConfigMaps, Secrets, the downward API, service account tokens.

use serde_json::json;

use crate::stage::{LIMIT, WAIT, pod, shell, stage};

#[test]
fn a_pod_sees_its_configuration_and_what_becomes_of_it() {
    let Some(stage) = stage() else { return };
    let mut container = shell("main", WAIT);
    container["env"] = json!([
        { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
        { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "password" } } },
    ]);
    container["volumeMounts"] = json!([
        { "name": "config", "mountPath": "/config" },
        { "name": "secret", "mountPath": "/secret", "readOnly": true },
        { "name": "pod", "mountPath": "/pod" },
        { "name": "config", "mountPath": "/single/greeting", "subPath": "greeting" },
    ]);
    let spec = json!({ "volumes": [
        { "name": "config", "configMap": { "name": "config" } },
        { "name": "secret", "secret": { "secretName": "secret", "defaultMode": 0o400 } },
        { "name": "pod", "downwardAPI": { "items": [
            { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        ]}},
    ]});
    let config = |greeting: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "config" }, "data": { "greeting": greeting },
        })
    };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "secret" }, "stringData": { "password": "open sesame" },
    });
    stage.apply(&[
        config("hello"),
        secret,
        pod("told", json!([container]), spec),
    ]);
    stage.wait_until_ready("told");

    let told = stage.kubectl.get(&["pod", "told"]).unwrap().unwrap();
    let address = told["status"]["podIP"].as_str().unwrap();
    assert_eq!(
        stage.inside("told", "echo $POD_IP; echo $PASSWORD"),
        format!("{address}\nopen sesame\n")
    );
    assert_eq!(
        stage.inside("told", "cat /config/greeting /single/greeting"),
        "hellohello"
    );
    assert_eq!(
        stage.inside(
            "told",
            "cat /secret/password; stat -L -c ' %a' /secret/password"
        ),
        "open sesame 400\n"
    );
    assert_eq!(stage.inside("told", "cat /pod/labels"), "app=\"told\"");
    // Copies of the guest's own, whose watchers hear of changes (`pods.rs` has one); what is mounted by subPath is shared.
    let kinds = "for at in /config /secret /pod /var/run/secrets/kubernetes.io/serviceaccount /single/greeting; do stat -f -c %T $at; done";
    let kinds = stage.inside("told", kinds);
    let (copies, shared) = kinds.rsplit_once("tmpfs\n").unwrap_or_default();
    assert_eq!(copies, "tmpfs\n".repeat(3), "{kinds}");
    assert!(!shared.is_empty() && !shared.contains("tmpfs"), "{kinds}");
    let token = stage.inside(
        "told",
        "cat /var/run/secrets/kubernetes.io/serviceaccount/token",
    );
    assert_eq!(token.split('.').count(), 3, "no token: {token:?}");

    stage.apply(&[config("good bye")]);
    stage
        .kubectl
        .wait_for("new greeting in the pod", LIMIT, |_| {
            Ok((stage.inside("told", "cat /config/greeting") == "good bye").then_some(()))
        })
        .unwrap();
    // What is mounted by subPath stays as it was, here as elsewhere.
    assert_eq!(stage.inside("told", "cat /single/greeting"), "hello");
}
