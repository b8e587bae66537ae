//! A client of containerd's CRI, the interface through which the kubelet speaks to it. Calls block.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

pub use self::container::{Container, resources};
use self::v1::runtime_service_client::RuntimeServiceClient;
use super::{HANDLER, Node, Sandboxer, network};

mod container;

/// The interface's messages.
#[allow(missing_docs, clippy::pedantic, reason = "made from proto/cri.proto")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(240);

static PODS: AtomicU32 = AtomicU32::new(0);

/// A connection to containerd's CRI.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    node: Node,
    /// Those that were not removed yet: a story that fails must not leave its pod to the next.
    pods: Mutex<Vec<Pod>>,
}

/// A pod as its maker knows it.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The id of its sandbox.
    pub id: String,
    config: v1::PodSandboxConfig,
}

impl Pod {
    /// The pod's cgroup, which the kubelet would make before the pod and remove after it.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        cgroup(&self.config)
    }
}

impl Cri {
    /// Prepares a connection to `node`'s containerd.
    ///
    /// # Errors
    /// When there is no containerd at its socket.
    pub fn connect(node: &Node) -> Result<Self> {
        let runtime = Runtime::new()?;
        let channel = runtime
            .block_on(orlop_proto::connect::unix(node.socket()))
            .with_context(|| format!("nothing answers at {}", node.socket().display()))?;
        Ok(Self {
            runtime,
            client: RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20),
            node: node.clone(),
            pods: Mutex::default(),
        })
    }

    /// True when containerd answers.
    pub fn is_ready(&self) -> bool {
        let mut client = self.client.clone();
        self.call(client.version(v1::VersionRequest {})).is_ok()
    }

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

    /// Creates a container in `pod` and returns its id.
    ///
    /// # Errors
    /// What containerd says.
    pub fn create(&self, pod: &Pod, container: &Container) -> Result<String, Status> {
        let mount = |readonly| {
            move |(there, here): &(&str, &str)| v1::Mount {
                container_path: (*there).to_owned(),
                host_path: (*here).to_owned(),
                readonly,
            }
        };
        let mounts = container.mounts.iter().map(mount(false));
        let mounts = mounts.chain(container.readonly_mounts.iter().map(mount(true)));
        let devices = container
            .devices
            .iter()
            .map(|(there, here, may)| v1::Device {
                container_path: (*there).to_owned(),
                host_path: (*here).to_owned(),
                permissions: (*may).to_owned(),
            });
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: container.name.to_owned(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: container.image.to_owned(),
            }),
            command: container.command.iter().map(|s| (*s).to_owned()).collect(),
            log_path: format!("{}.log", container.name),
            mounts: mounts.collect(),
            devices: devices.collect(),
            linux: Some(container::linux(container)),
            ..v1::ContainerConfig::default()
        };
        let mut client = self.client.clone();
        let answer = self.call(client.create_container(v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        }))?;
        Ok(answer.container_id)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// What containerd says.
    pub fn start(&self, container: &str) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = v1::StartContainerRequest {
            container_id: container.to_owned(),
        };
        self.call(client.start_container(request)).map(drop)
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run(&self, pod: &Pod, container: &Container) -> Result<String, Status> {
        let id = self.create(pod, container)?;
        self.start(&id)?;
        Ok(id)
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// What containerd says.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<v1::ExecSyncResponse, Status> {
        let mut client = self.client.clone();
        self.call(client.exec_sync(v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|s| (*s).to_owned()).collect(),
            timeout: 0,
        }))
    }

    /// The address at which the streams of a command in a container can be had.
    ///
    /// # Errors
    /// What containerd says.
    pub fn exec_address(
        &self,
        container: &str,
        command: &[&str],
        tty: bool,
    ) -> Result<String, Status> {
        let mut client = self.client.clone();
        let answer = self.call(client.exec(v1::ExecRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|s| (*s).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            // A terminal has one output.
            stderr: !tty,
        }))?;
        Ok(answer.url)
    }

    /// The address at which a port of a pod can be had.
    ///
    /// # Errors
    /// What containerd says.
    pub fn port_address(&self, pod: &Pod, port: u16) -> Result<String, Status> {
        let mut client = self.client.clone();
        let answer = self.call(client.port_forward(v1::PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![port.into()],
        }))?;
        Ok(answer.url)
    }

    /// Asks a container to end, and kills it after `grace` seconds.
    ///
    /// # Errors
    /// What containerd says.
    pub fn stop(&self, container: &str, grace: i64) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = v1::StopContainerRequest {
            container_id: container.to_owned(),
            timeout: grace,
        };
        self.call(client.stop_container(request)).map(drop)
    }

    /// What a container has written, as the kubelet would read it from its log.
    ///
    /// # Errors
    /// When there is no log.
    pub fn log(&self, pod: &Pod, name: &str) -> io::Result<String> {
        let path = Path::new(&pod.config.log_directory).join(format!("{name}.log"));
        // Each line is: time, stream, F or P, text.
        Ok(fs::read_to_string(path)?
            .lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .map(|line| format!("{line}\n"))
            .collect())
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

    /// Stops a pod and removes it with its containers.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), Status> {
        self.lock_pods().retain(|known| known.id != pod.id);
        let mut client = self.client.clone();
        self.call(client.stop_pod_sandbox(v1::StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        }))?;
        self.call(client.remove_pod_sandbox(v1::RemovePodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        }))?;
        // One that cannot be removed holds processes; whoever looks for what is left finds it.
        let _ = fs::remove_dir(cgroup(&pod.config));
        Ok(())
    }

    fn lock_pods(&self) -> MutexGuard<'_, Vec<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(async {
            match tokio::time::timeout(LIMIT, call).await {
                Ok(answer) => answer.map(Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded(format!(
                    "no answer within {} s",
                    LIMIT.as_secs()
                ))),
            }
        })
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.lock_pods());
        for pod in left {
            // Whoever did not remove it is failing already, and says why.
            let _ = self.remove_pod(&pod);
        }
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
