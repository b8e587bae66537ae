//! How long pods take to come, one and many at once, beside those of the node's ordinary runtime.

use std::time::{Duration, Instant};

use orlop_testbed::cluster::kubectl::has_condition;
use orlop_testbed::stories::size;
use serde_json::{Value, json};

use crate::stage::{LIMIT, Stage, WAIT, pod, shell, stage};

#[test]
fn many_pods_come_at_once_and_how_long_that_takes_is_told_beside_runc() {
    let Some(stage) = stage() else { return };
    for count in [1, size(2, 10), size(4, 30)] {
        let [runc, orlop] = ["runc", "orlop"].map(|runtime| time_of(&stage, count, runtime));
        println!(
            "from apply to ready, {count} pods: {:.1} s with runc, {:.1} s with Orlop",
            runc.as_secs_f64(),
            orlop.as_secs_f64(),
        );
    }
}

/// How long it takes from `kubectl apply` until all of so many pods are ready. They are gone when this returns.
fn time_of(stage: &Stage, count: u64, runtime: &str) -> Duration {
    let names: Vec<_> = (0..count)
        .map(|n| format!("{runtime}-{count}-{n}"))
        .collect();
    let pods: Vec<_> = names.iter().map(|name| small(name, runtime)).collect();
    let begun = Instant::now();
    stage.apply(&pods);
    let selector = format!("--selector=set={runtime}");
    let ready = stage
        .kubectl
        .wait_for("pod that is ready", LIMIT * 4, |kubectl| {
            let pods = kubectl.get(&["pods", &selector])?;
            Ok(pods.filter(|pods| ready_of(pods) == names.len()))
        });
    let taken = begun.elapsed();
    if let Err(error) = ready {
        panic!("{error:#}\n{}", stage.story_so_far());
    }
    let limit = format!("--timeout={}s", LIMIT.as_secs() * 4);
    stage
        .kubectl
        .run(&["delete", "pods", &selector, "--wait", &limit])
        .unwrap();
    taken
}

/// A pod that asks for little.
fn small(name: &str, runtime: &str) -> Value {
    let mut container = shell("main", WAIT);
    container["resources"] = json!({ "requests": { "cpu": "10m", "memory": "16Mi" } });
    let mut pod = pod(name, json!([container]), json!({}));
    pod["metadata"]["labels"]["set"] = runtime.into();
    if runtime != "orlop" {
        // What the node does when nobody asks for another.
        pod["spec"]["runtimeClassName"] = Value::Null;
    }
    pod
}

fn ready_of(pods: &Value) -> usize {
    let pods = pods["items"].as_array();
    let ready = pods
        .into_iter()
        .flatten()
        .filter(|pod| has_condition(pod, "Ready"));
    ready.count()
}
