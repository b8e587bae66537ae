//! What containers use, as it is told outside.

use orlop_proto::agent::v1::StatsRequest;
use orlop_testbed::containerd::cri::Container;
use serde_json::Value;

use crate::agent::{AgentVm, spec};
use crate::common::stage;

const MEMORY: i64 = 48 << 20;

#[test]
fn containerds_metrics_are_those_of_the_guests_control_group() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("measured").unwrap();
    let command = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
    let container = Container {
        memory: MEMORY,
        ..Container::busybox("measured", &command)
    };
    let container = cri.run(&pod, &container).unwrap();
    let line = ["tasks", "metrics", "--format", "json", &container];
    let done = stage.node.ctr("k8s.io", &line).unwrap();
    assert_eq!(done.status, 0, "{}", done.error());
    let metrics: Value = serde_json::from_slice(&done.stdout).unwrap();
    let number = |pointer| metrics.pointer(pointer).and_then(Value::as_u64);
    let limit = MEMORY.unsigned_abs();
    assert_eq!(number("/memory/usage_limit"), Some(limit), "{metrics:#}");
    for some in [
        "/memory/usage",
        "/memory/anon",
        "/memory/pgfault",
        "/cpu/usage_usec",
        "/pids/current",
    ] {
        let found = number(some).unwrap_or(0);
        assert!(found > 0, "{some}: {metrics:#}");
        assert!(!some.starts_with("/memory/us") || found < limit, "{some}");
    }
    let sizes = metrics.get("hugetlb").and_then(Value::as_array).unwrap();
    let is_usual = |size: &Value| size.get("pagesize").is_some_and(|size| size == "2MB");
    assert!(sizes.iter().any(is_usual), "{metrics:#}");
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn what_a_container_reads_from_a_disk_is_counted() {
    if stage().is_none() {
        return;
    }
    let vm = AgentVm::start();
    let reader = spec(&["sh", "-c", "cat /bin/busybox >/dev/null; sleep 1000"]);
    vm.create("reader", &reader).unwrap();
    vm.start_process("reader", "").unwrap();
    let stats = vm.call(async |mut agent| {
        let request = StatsRequest {
            container: "reader".into(),
        };
        agent.stats(request).await
    });
    let stats = stats.unwrap();
    let read: u64 = stats.io.iter().map(|disk| disk.rbytes).sum();
    // It is the guest's first container, so what it runs has not been read before.
    assert!(read > 0, "{stats:?}");
    assert!(stats.memory_peak >= stats.memory_current, "{stats:?}");
    vm.signal("reader", "", libc::SIGKILL).unwrap();
    vm.stop();
}
