//! A client of containerd's CRI, the interface through which the kubelet speaks to it. Calls block.

use std::fs;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

pub use self::container::{Container, resources};
pub use self::pod::Pod;
use self::v1::runtime_service_client::RuntimeServiceClient;
use super::Node;

mod container;
mod pod;

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
