//! What a container is to be, and how one does.

use std::time::Duration;

use tonic::Status;

use super::{Cri, v1};
use crate::image;

/// What a container is to be.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// Its image.
    pub image: &'a str,
    /// Its command.
    pub command: &'a [&'a str],
    /// Files and directories of this machine for it: path there, path here.
    pub mounts: &'a [(&'a str, &'a str)],
    /// The same, which it may only read.
    pub readonly_mounts: &'a [(&'a str, &'a str)],
    /// Devices of this machine for it: path there, path here, and what it may do (`r`, `w`, `m`).
    pub devices: &'a [(&'a str, &'a str, &'a str)],
    /// Bytes of memory that it may have; 0 for no limit.
    pub memory: i64,
    /// Thousandths of a CPU that it may have; 0 for no limit.
    pub cpu: i64,
    /// Whether it has containerd's own seccomp profile.
    pub seccomp: bool,
    /// Whether it is privileged, which its pod must be as well.
    pub privileged: bool,
}

impl<'a> Container<'a> {
    /// A container of the busybox image that runs `command`.
    #[must_use]
    pub fn busybox(name: &'a str, command: &'a [&'a str]) -> Self {
        Self {
            name,
            image: image::BUSYBOX,
            command,
            mounts: &[],
            readonly_mounts: &[],
            devices: &[],
            memory: 0,
            cpu: 0,
            seccomp: false,
            privileged: false,
        }
    }
}

impl Cri {
    /// Gives a running container other limits.
    ///
    /// # Errors
    /// What containerd says.
    pub fn update(
        &self,
        container: &str,
        limits: v1::LinuxContainerResources,
    ) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = v1::UpdateContainerResourcesRequest {
            container_id: container.to_owned(),
            linux: Some(limits),
        };
        let answer = client.update_container_resources(request);
        self.call(answer).map(drop)
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove(&self, container: &str) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = v1::RemoveContainerRequest {
            container_id: container.to_owned(),
        };
        self.call(client.remove_container(request)).map(drop)
    }

    /// How a container does.
    ///
    /// # Errors
    /// What containerd says.
    pub fn status(&self, container: &str) -> Result<v1::ContainerStatus, Status> {
        let mut client = self.client.clone();
        let request = v1::ContainerStatusRequest {
            container_id: container.to_owned(),
        };
        let answer = self.call(client.container_status(request))?;
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// Waits until a container has ended.
    ///
    /// # Errors
    /// What containerd says, or that it has not ended after `limit`.
    pub fn wait(&self, container: &str, limit: Duration) -> Result<v1::ContainerStatus, Status> {
        let end = std::time::Instant::now() + limit;
        loop {
            let status = self.status(container)?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            if std::time::Instant::now() > end {
                return Err(Status::deadline_exceeded("the container has not ended"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Limits as the kubelet writes them: thousandths of a CPU, and bytes of memory; 0 for none.
#[must_use]
pub fn resources(cpu: i64, memory: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: if cpu > 0 { 100_000 } else { 0 },
        cpu_quota: cpu * 100,
        cpu_shares: 0,
        memory_limit_in_bytes: memory,
    }
}

pub(super) fn linux(container: &Container) -> v1::LinuxContainerConfig {
    use v1::security_profile::ProfileType;
    let profile = if container.seccomp {
        ProfileType::RuntimeDefault
    } else {
        ProfileType::Unconfined
    };
    v1::LinuxContainerConfig {
        resources: Some(resources(container.cpu, container.memory)),
        security_context: Some(v1::LinuxContainerSecurityContext {
            privileged: container.privileged,
            seccomp: Some(v1::SecurityProfile {
                profile_type: profile.into(),
                localhost_ref: String::new(),
            }),
        }),
    }
}
