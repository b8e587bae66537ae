//! A Deployment whose pods are KVM guests, in a Kubernetes cluster.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::kubectl::Kubectl;
use crate::cluster::{Cluster, NODE, Programs};
use crate::image::BUSYBOX;
use crate::progress::step;

/// How long pods may take to come or to go, on a busy machine that emulates their node.
const LIMIT: Duration = Duration::from_secs(600);

/// What is applied: two pods that are KVM guests behind a service, and one that is an ordinary container.
fn manifests() -> String {
    format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      runtimeClassName: orlop
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: {BUSYBOX}
        command: [sh, -c, 'mkdir /www && echo "hello from $(hostname), Linux $(uname -r)" >/www/index.html && echo serving && exec busybox httpd -f -h /www -p 80']
        ports: [{{containerPort: 80}}]
        readinessProbe: {{tcpSocket: {{port: 80}}, timeoutSeconds: 10}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: client
    image: {BUSYBOX}
    command: [sleep, infinity]
"#
    )
}

/// Shows it. Called inside a cluster's namespaces.
///
/// # Errors
/// When a step fails, or something is left at the end.
pub fn show() -> Result<ExitCode> {
    let cluster = Cluster::start(&Programs::get()?)?;
    let shown = show_in(cluster.kubectl());
    let left = cluster.stop();
    shown?;
    let left = left?;
    if !left.is_empty() {
        bail!("the pods left:\n  {}", left.join("\n  "));
    }
    step("nothing is left. Those were Kubernetes pods in KVM guests.");
    Ok(ExitCode::SUCCESS)
}

fn show_in(kubectl: &Kubectl) -> Result<()> {
    tell(kubectl, &["get", "nodes", "--output=wide"])?;
    tell(kubectl, &["apply", "--kustomize", "deploy"])?;
    step(
        "applying a Deployment of two pods with `runtimeClassName: orlop`, a Service, and a pod without",
    );
    kubectl.apply(&manifests())?;
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    kubectl
        .run(&["rollout", "status", "deployment/web", &limit])
        .or_else(|error| bail!("{error:#}\n{}", events(kubectl)))?;
    step("all of them are ready");
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", &limit])?;
    tell(kubectl, &["get", "pods", "--output=wide"])?;
    tell(kubectl, &["logs", "deployment/web"])?;
    let node = kubectl.get(&["node", NODE])?.context("the node has gone")?;
    let kernel = node.pointer("/status/nodeInfo/kernelVersion");
    step(format!(
        "the node runs Linux {}; what the pods run:",
        kernel.and_then(|version| version.as_str()).unwrap_or("?")
    ));
    tell(kubectl, &["exec", "deployment/web", "--", "uname", "-a"])?;
    tell(kubectl, &["exec", "client", "--", "uname", "-a"])?;
    step("asking the Service from the ordinary pod, six times");
    let address = kubectl.run(&["get", "service/web", "--output=jsonpath={.spec.clusterIP}"])?;
    let ask = format!("for n in 1 2 3 4 5 6; do wget -q -O - http://{address}/; done");
    tell(kubectl, &["exec", "client", "--", "sh", "-c", &ask])?;
    step("deleting all of it");
    kubectl.run_with(
        &["delete", "--wait", &limit, "--filename", "-"],
        manifests().as_bytes(),
    )?;
    step("ending the node, which looks for what the pods left");
    Ok(())
}

/// Runs `kubectl` and shows it with what it prints.
fn tell(kubectl: &Kubectl, arguments: &[&str]) -> Result<()> {
    let said = kubectl.run(arguments)?;
    eprintln!("\n  $ kubectl {}", arguments.join(" "));
    for line in said.lines() {
        eprintln!("  {line}");
    }
    eprintln!();
    Ok(())
}

/// What went wrong, as a user would look at it.
fn events(kubectl: &Kubectl) -> String {
    ["pods", "events"]
        .map(|what| kubectl.run(&["get", what, "--output=wide"]))
        .map(|said| said.unwrap_or_else(|error| format!("{error:#}")))
        .join("\n")
}
