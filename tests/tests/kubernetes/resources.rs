//! What a pod may take: quotas, and limits that change while it runs.

use serde_json::{Value, json};

use crate::stage::{BOOT_ID, LIMIT, WAIT, pod, restarts, shell, stage};

#[test]
fn a_quota_counts_what_a_guest_takes_beside_its_containers() {
    let Some(stage) = stage() else { return };
    let class = stage
        .kubectl
        .get(&["runtimeclass", "orlop"])
        .unwrap()
        .unwrap();
    let overhead = mebibytes(&class["overhead"]["podFixed"]["memory"]);
    assert!(overhead > 0, "{class}");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "small" },
        "spec": { "hard": { "requests.memory": format!("{}Mi", 2 * overhead + 32) } },
    });
    stage.apply(&[quota]);
    let with_memory = |name: &str, memory: String| {
        let mut container = shell("main", WAIT);
        container["resources"] = json!({ "requests": { "memory": memory } });
        pod(name, json!([container]), json!({}))
    };
    stage.apply(&[with_memory("fits", "16Mi".into())]);
    let used = stage
        .kubectl
        .wait_for("quota that has counted", LIMIT, |kubectl| {
            let quota = kubectl.get(&["resourcequota", "small"])?;
            let used = quota.map(|quota| mebibytes(&quota["status"]["used"]["requests.memory"]));
            Ok(used.filter(|used| *used > 0))
        });
    assert_eq!(used.unwrap(), overhead + 16);
    let much = with_memory("much", format!("{}Mi", overhead + 17)).to_string();
    let error = stage.kubectl.apply(&much).unwrap_err().to_string();
    assert!(error.contains("exceeded quota"), "{error}");
    stage.wait_until_ready("fits");
}

#[test]
fn a_pod_is_resized_in_place() {
    let Some(stage) = stage() else { return };
    let limits = |cpu: &str, memory: &str| json!({ "cpu": cpu, "memory": memory });
    let mut container = shell("main", WAIT);
    let small = limits("1", "96Mi");
    container["resources"] = json!({ "limits": small, "requests": small });
    stage.apply(&[pod("grows", json!([container]), json!({}))]);
    stage.wait_until_ready("grows");
    let guest = stage.inside("grows", BOOT_ID);
    let total = "grep ^MemTotal: /proc/meminfo | tr -dc 0-9";
    let before: u64 = stage.inside("grows", total).trim().parse().unwrap();

    let large = limits("2", "256Mi");
    let patch = json!({ "spec": { "containers": [{
        "name": "main", "resources": { "limits": large, "requests": large },
    }]}});
    let line = [
        "patch",
        "pod",
        "grows",
        "--subresource=resize",
        "--patch",
        &patch.to_string(),
    ];
    stage.kubectl.run(&line).unwrap();
    let resized = stage.wait_for("grows", "has its new limits", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["resources"]["limits"] == large
    });
    assert_eq!(restarts(&resized), 0);
    let inside = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max";
    assert_eq!(
        stage.inside("grows", inside),
        format!("200000 100000\n{}\n", 256 << 20)
    );
    let after: u64 = stage.inside("grows", total).trim().parse().unwrap();
    assert!(after > before + 150 * 1024, "{before} KiB, then {after}");
    assert_eq!(
        stage.inside("grows", "grep -c ^processor /proc/cpuinfo"),
        "2\n"
    );
    assert_eq!(stage.inside("grows", BOOT_ID), guest, "another guest");
}

/// As Kubernetes writes quantities: `128Mi`, or bytes.
fn mebibytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap_or("0");
    match text.strip_suffix("Mi") {
        Some(text) => text.parse().unwrap(),
        None => text.parse::<u64>().unwrap() >> 20,
    }
}
