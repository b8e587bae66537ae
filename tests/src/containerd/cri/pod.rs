//! Pods: made, looked at, removed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use tonic::Status;

use super::{Cri, PODS, v1};
use crate::containerd::{HANDLER, Sandboxer, network};

/// A pod as its maker knows it.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The id of its sandbox.
    pub id: String,
    pub(super) config: v1::PodSandboxConfig,
}

impl Pod {
    /// The pod's cgroup, which the kubelet would make before the pod and remove after it.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        cgroup(&self.config)
    }
}

impl Cri {
    /// Starts a pod with Orlop.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_pod(&self, name: &str) -> Result<Pod, Status> {
        self.run_pod_with(name, HANDLER)
    }

    /// Starts a pod with the runtime behind `handler`.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_pod_with(&self, name: &str, handler: &str) -> Result<Pod, Status> {
        self.run_pod_changed(name, handler, |_| {})
    }

    /// Starts a pod with the runtime behind `handler`, after `change` of what the kubelet would ask for.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_pod_changed(
        &self,
        name: &str,
        handler: &str,
        change: impl FnOnce(&mut v1::PodSandboxConfig),
    ) -> Result<Pod, Status> {
        let number = PODS.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{}-{}-{number}", name, std::process::id());
        let mut config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "stories".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.node.logs().join(&uid).display().to_string(),
            labels: HashMap::new(),
            annotations: HashMap::new(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/pod-{uid}"),
                security_context: None,
                resources: None,
            }),
            dns_config: None,
        };
        change(&mut config);
        make_cgroup(&config).map_err(|error| Status::internal(error.to_string()))?;
        let mut client = self.client.clone();
        let answer = self.call(client.run_pod_sandbox(v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        }));
        if answer.is_err() {
            let _ = fs::remove_dir(cgroup(&config));
        }
        let answer = answer?;
        let pod = Pod {
            id: answer.pod_sandbox_id,
            config,
        };
        self.lock_pods().push(pod.clone());
        Ok(pod)
    }

    /// True while a pod's sandbox is ready.
    ///
    /// # Errors
    /// What containerd says.
    pub fn is_pod_ready(&self, pod: &Pod) -> Result<bool, Status> {
        let state = self.pod_status(pod)?.state();
        Ok(state == v1::PodSandboxState::SandboxReady)
    }

    /// A pod's addresses, as the kubelet would report them.
    ///
    /// # Errors
    /// What containerd says.
    pub fn addresses(&self, pod: &Pod) -> Result<Vec<IpAddr>, Status> {
        let network = self.pod_status(pod)?.network.unwrap_or_default();
        let others = network.additional_ips.into_iter().map(|other| other.ip);
        std::iter::once(network.ip)
            .chain(others)
            .map(|ip| ip.parse().map_err(|_| Status::internal(ip)))
            .collect()
    }

    fn pod_status(&self, pod: &Pod) -> Result<v1::PodSandboxStatus, Status> {
        let mut client = self.client.clone();
        let answer = self.call(client.pod_sandbox_status(v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: false,
        }))?;
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// The network namespace that containerd has made for a pod.
    ///
    /// # Errors
    /// When neither the spec of its sandbox says nor, where it has none, what containerd keeps of its network.
    pub fn network_namespace(&self, pod: &Pod) -> Result<PathBuf> {
        if Sandboxer::of_stories() == Sandboxer::Shim {
            return network::namespace_of(&pod.id);
        }
        let bundles = "state/io.containerd.runtime.v2.task/k8s.io";
        let bundle = self.node.directory().join(bundles).join(&pod.id);
        let spec = fs::read(bundle.join("config.json"))?;
        let spec: serde_json::Value = serde_json::from_slice(&spec)?;
        let namespaces = spec["linux"]["namespaces"].as_array();
        let network = namespaces
            .into_iter()
            .flatten()
            .find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str());
        path.map(PathBuf::from)
            .context("the pod has no network namespace")
    }

    /// The ids of all pods that containerd knows.
    ///
    /// # Errors
    /// What containerd says.
    pub fn pods(&self) -> Result<Vec<String>, Status> {
        let mut client = self.client.clone();
        let answer = self.call(client.list_pod_sandbox(v1::ListPodSandboxRequest {}))?;
        Ok(answer.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Stops a pod and removes it with its containers.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), Status> {
        self.lock_pods().retain(|known| known.id != pod.id);
        self.remove_pod_of_id(&pod.id)?;
        // One that cannot be removed holds processes; whoever looks for what is left finds it.
        let _ = fs::remove_dir(cgroup(&pod.config));
        Ok(())
    }

    /// Stops a pod and removes it with its containers, but for the cgroup that its maker has made.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_pod_of_id(&self, id: &str) -> Result<(), Status> {
        let mut client = self.client.clone();
        self.call(client.stop_pod_sandbox(v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        }))?;
        self.call(client.remove_pod_sandbox(v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        }))?;
        Ok(())
    }
}

/// The pod's cgroup, which the kubelet would make before the pod and remove after it.
fn cgroup(config: &v1::PodSandboxConfig) -> PathBuf {
    let parent = config.linux.as_ref().map(|linux| &*linux.cgroup_parent);
    Path::new("/sys/fs/cgroup").join(parent.unwrap_or("/").trim_start_matches('/'))
}

fn make_cgroup(config: &v1::PodSandboxConfig) -> io::Result<()> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        fs::create_dir_all(cgroup(config))?;
    }
    Ok(())
}
