//! What most clusters have besides Kubernetes: names for services (CoreDNS), and what pods use (metrics-server). Both are processes of this
//! machine, as the control plane is, so that an emulated node has none of their work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::Files;
use super::kubectl::Kubectl;
use super::network::CONTROL_PLANE;
use super::process::Process;
use crate::cache::Cache;
use crate::setup::go;

/// What services' names end with.
pub(super) const DOMAIN: &str = "cluster.local";

/// Where metrics-server listens.
const METRICS_PORT: u16 = 4443;

/// How long the API server may take to find it.
const LIMIT: Duration = Duration::from_secs(120);

/// The processes; they end with this value.
#[derive(Debug)]
pub(super) struct Addons {
    _names: Process,
    _metrics: Process,
}

/// Where their programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    names: PathBuf,
    metrics: PathBuf,
}

impl Programs {
    /// Finds them in the cache, or builds them.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn get() -> Result<Self> {
        let cache = Cache::open()?;
        Ok(Self {
            names: go::build(&cache, go::COREDNS)?.join("coredns"),
            metrics: go::build(&cache, go::METRICS)?.join("metrics-server"),
        })
    }
}

impl Addons {
    /// Starts them, and has the API server ask for figures where they are.
    pub(super) fn start(files: &Files, kubectl: &Kubectl) -> Result<Self> {
        let programs = Programs::get()?;
        let names = Process::start("coredns", names(&programs.names, files)?, files)?;
        let mut metrics =
            Process::start("metrics-server", metrics(&programs.metrics, files), files)?;
        kubectl.apply(&metrics_service().to_string())?;
        metrics.wait_until(LIMIT, || {
            kubectl.api_is_available(METRICS_API).then_some(())
        })?;
        Ok(Self {
            _names: names,
            _metrics: metrics,
        })
    }
}

fn names(program: &Path, files: &Files) -> Result<Command> {
    let file = files.root().join("Corefile");
    let kubeconfig = files.kubeconfig("admin");
    let kubeconfig = kubeconfig.display();
    let config = format!(
        ".:53 {{\n  bind {CONTROL_PLANE}\n  errors\n  kubernetes {DOMAIN} {{\n    kubeconfig {kubeconfig} testbed\n    ttl 5\n  }}\n}}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("-conf").arg(file);
    Ok(command)
}

fn metrics(program: &Path, files: &Files) -> Command {
    let mut command = Command::new(program);
    for flag in [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ] {
        let mut flag = std::ffi::OsString::from(format!("--{flag}="));
        flag.push(files.kubeconfig("admin"));
        command.arg(flag);
    }
    command
        .arg(format!("--secure-port={METRICS_PORT}"))
        .args([
            "--kubelet-preferred-address-types=InternalIP",
            "--kubelet-insecure-tls",
        ])
        .args(["--metric-resolution=15s", "--cert-dir"])
        .arg(files.root().join("metrics"));
    command
}

/// The API that metrics-server serves.
const METRICS_API: &str = "v1beta1.metrics.k8s.io";

/// The service behind which it is, with the one address that it has, outside of the cluster.
fn metrics_service() -> serde_json::Value {
    let metadata = json!({ "name": "metrics-server", "namespace": "kube-system" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": { "ports": [{ "name": "https", "port": 443, "targetPort": METRICS_PORT }] },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "metrics-server", "namespace": "kube-system",
                "labels": { "kubernetes.io/service-name": "metrics-server" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "https", "port": METRICS_PORT }],
            "endpoints": [{ "addresses": [CONTROL_PLANE], "conditions": { "ready": true } }],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": METRICS_API },
            "spec": {
                "group": "metrics.k8s.io", "version": "v1beta1",
                "service": { "name": "metrics-server", "namespace": "kube-system" },
                "insecureSkipTLSVerify": true, "groupPriorityMinimum": 100, "versionPriority": 100,
            },
        },
    ]})
}
