//! The cluster that the testbed started, and a story's namespace in it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orlop_testbed::cluster::kubectl::{Kubectl, has_condition};
use orlop_testbed::image::BUSYBOX;
use orlop_testbed::stories;
use serde_json::{Value, json};

/// How long pods may take to come or to go, on a busy machine that emulates their node.
pub const LIMIT: Duration = Duration::from_secs(400);

/// A command that goes on until it is told to end, and then ends at once.
pub const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// Which guest it is.
pub const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

static STORIES: AtomicU32 = AtomicU32::new(0);

/// A namespace in the cluster; it goes with the story.
pub struct Stage {
    pub kubectl: Kubectl,
    namespace: String,
}

/// The story's namespace; without a cluster the story is skipped.
pub fn stage() -> Option<Stage> {
    let Some(kubectl) = Kubectl::attach() else {
        stories::skip("there is no cluster here; `cargo testbed test --all` starts one");
        return None;
    };
    let number = STORIES.fetch_add(1, Ordering::Relaxed);
    let namespace = format!("story-{number}");
    kubectl.run(&["create", "namespace", &namespace]).unwrap();
    let kubectl = kubectl.in_namespace(&namespace);
    kubectl
        .wait_for("service account", LIMIT, |kubectl| {
            kubectl.get(&["serviceaccount", "default"])
        })
        .unwrap();
    Some(Stage { kubectl, namespace })
}

impl Stage {
    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes objects.
    pub fn apply(&self, objects: &[Value]) {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.kubectl.apply(&list.to_string()).unwrap();
    }

    /// Waits until a pod is ready.
    pub fn wait_until_ready(&self, pod: &str) {
        self.wait_for(pod, "is ready", |object| has_condition(object, "Ready"));
    }

    /// Waits until a pod is as `is` wants it.
    pub fn wait_for(&self, pod: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let found = self
            .kubectl
            .wait_for(&format!("pod {pod} that {what}"), LIMIT, |kubectl| {
                Ok(kubectl.get(&["pod", pod])?.filter(|object| is(object)))
            });
        found.unwrap_or_else(|error| panic!("{error:#}\n{}", self.story_so_far()))
    }

    /// Runs a shell script in a pod and returns what it printed.
    pub fn inside(&self, pod: &str, script: &str) -> String {
        self.kubectl
            .run(&["exec", pod, "--", "sh", "-c", script])
            .unwrap()
    }

    /// What a user would look at who wonders.
    pub fn story_so_far(&self) -> String {
        ["pods", "events"]
            .map(|what| self.kubectl.run(&["get", what, "--output=wide"]))
            .map(|said| said.unwrap_or_else(|error| format!("{error:#}")))
            .join("\n")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let limit = format!("--timeout={}s", LIMIT.as_secs());
        let line = ["delete", "namespace", &self.namespace, "--wait", &limit];
        if let Err(error) = self.kubectl.run(&line) {
            // Not to panic while the story does: what is left is told when the node ends.
            eprintln!("{error:#}");
        }
    }
}

/// A container of the busybox image that runs a shell script.
pub fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] })
}

/// A pod that is a KVM guest; `spec` adds to its containers.
pub fn pod(name: &str, containers: Value, spec: Value) -> Value {
    let mut whole = json!({
        "runtimeClassName": "orlop",
        "terminationGracePeriodSeconds": 5,
        "containers": containers,
    });
    merge(&mut whole, spec);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": whole,
    })
}

/// The template of such a pod, for a controller.
pub fn template(app: &str, containers: Value, spec: Value) -> Value {
    let mut template = pod(app, containers, spec);
    let metadata = json!({ "labels": { "app": app } });
    json!({ "metadata": metadata, "spec": template["spec"].take() })
}

/// Puts the fields of `more` over those of `to`.
pub fn merge(to: &mut Value, more: Value) {
    match (to, more) {
        (Value::Object(to), Value::Object(more)) => {
            for (name, value) in more {
                merge(to.entry(name).or_insert(Value::Null), value);
            }
        }
        (to, more) => *to = more,
    }
}

/// The phase of a pod.
pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// How often a pod's first container has started again.
pub fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"]
        .as_i64()
        .unwrap_or(0)
}
