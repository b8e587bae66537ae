//! From a host's OCI spec to a guest's.
//!
//! containerd writes a spec for a container on this machine. The guest is another machine: it has its own namespaces,
//! cgroups, devices and security modules, and none of the host's paths. [`adapt`] answers the spec that the agent
//! gets, the binds that must be made on this machine for it ([`HostBind`]): each becomes
//! `mounts/<n>` of the container's directory in the share; and the disks that the VM must have for it ([`HostDisk`]). Directories
//! that somebody may watch ([`watched`]) are not bound where the guest has copies of them.

mod annotations;
mod devices;
mod linux;
mod mounts;
mod network;
mod passthrough;
mod pod_config;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, LinuxResources, Process, Spec};
use orlop_proto::agent::{SHARE_MOUNT, VOLUMES};

use crate::network::HOST_NETWORK;
pub use annotations::{Annotations, PodName, Restricted};
pub use devices::{DeviceId, HostDisk};
pub use mounts::watched;
pub use network::Network;
pub use passthrough::{HostDevice, of as host_devices};
pub use pod_config::PodConfig;

/// Where the agent has the file system that stands for the pod's shared memory.
const GUEST_SHM: &str = "/run/orlop/shm";
/// The cgroup in the guest below which each container has its own.
const GUEST_CGROUP: &str = "/orlop";

/// Why a spec cannot be run in a guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// It asks for programs of the host to be run.
    #[error("the spec has {0} hooks, which Orlop cannot run: they are programs of the host")]
    Hooks(&'static str),
    /// It asks for a user namespace.
    #[error("the spec maps user ids: user namespaces are not supported in an Orlop guest")]
    UserNamespace,
    /// It asks for the machine's network.
    #[error("{HOST_NETWORK}")]
    HostNetwork,
    /// A bind mount has no source.
    #[error("the bind mount on {} has no source", .0.display())]
    NoSource(PathBuf),
    /// It asks for a device of the host's that there is not.
    #[error(
        "the spec has the device {}, behind which this host has no PCI device: the device plugin or the CDI file that names it is out of date", .0.display()
    )]
    NoHostDevice(PathBuf),
    /// A pod's configuration is not what its type says.
    #[error("the pod's configuration is malformed: {0}")]
    PodConfig(String),
    /// It has no process.
    #[error("the spec has no process")]
    NoProcess,
    /// It cannot be written back.
    #[error("the spec cannot be written: {0}")]
    Write(String),
}

/// What of a pod its containers share, as the spec of its sandbox or its configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSpec {
    hostname: Option<String>,
    sysctl: HashMap<String, String>,
    /// Files that each of them has, but for one whose own spec says what is there.
    etc: Vec<PodFile>,
}

/// A file that a pod's containers share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFile {
    /// Where it is in a container.
    pub destination: &'static str,
    /// Where it is on this machine.
    pub source: PathBuf,
}

impl PodSpec {
    /// What the sandbox container's spec says.
    pub fn of_sandbox(spec: &Spec) -> Self {
        let sysctl = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.sysctl().clone());
        Self {
            hostname: spec.hostname().clone(),
            sysctl: sysctl.unwrap_or_default(),
            etc: Vec::new(),
        }
    }
}

/// A file or directory of this machine that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBind {
    /// The path on this machine.
    pub source: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// So that the guest cannot write to it.
    pub readonly: bool,
}

/// A spec for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpec {
    /// The spec, which names only paths of the guest.
    pub spec: Spec,
    /// What must be bound to `mounts/0`, `mounts/1`, … for it.
    pub binds: Vec<HostBind>,
    /// What must be a disk of the VM for it.
    pub disks: Vec<HostDisk>,
}

impl GuestSpec {
    /// The spec as JSON.
    ///
    /// # Errors
    /// Not expected: a spec that was read can be written.
    pub fn to_json(&self) -> Result<Vec<u8>, SpecError> {
        serde_json::to_vec(&self.spec).map_err(|error| SpecError::Write(error.to_string()))
    }
}

/// Adapts the spec of container `id` in a pod that shares `pod`, where the guest has copies of `volumes`, directories of the host.
///
/// # Errors
/// When it asks for what a guest cannot give.
pub fn adapt(
    spec: &Spec,
    id: &str,
    pod: &PodSpec,
    volumes: &[PathBuf],
) -> Result<GuestSpec, SpecError> {
    let mut spec = spec.clone();
    refuse_hooks(spec.hooks().as_ref())?;
    spec.set_hooks(None);
    // Notes of the host to itself.
    spec.set_annotations(None);
    spec.set_vm(None).set_windows(None).set_solaris(None);

    let share = guest_directory(id);
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(share.join("rootfs"));
    spec.set_root(Some(root));

    let mut process = spec.process().clone().ok_or(SpecError::NoProcess)?;
    adapt_process(&mut process);
    spec.set_process(Some(process));

    mounts::add_shared(&mut spec, &pod.etc);
    let copies = Path::new(VOLUMES).join(id);
    let binds = mounts::adapt(&mut spec, &share.join("mounts"), volumes, &copies)?;
    let disks = linux::adapt(&mut spec, id, pod)?;
    Ok(GuestSpec { spec, binds, disks })
}

/// Adapts the process of an exec, given as JSON, and sets whether it has a terminal.
///
/// # Errors
/// When it is not an OCI process.
pub fn adapt_exec(process: &[u8], terminal: bool) -> Result<Vec<u8>, SpecError> {
    let mut process: Process = serde_json::from_slice(process)
        .map_err(|error| SpecError::Write(format!("not an OCI process: {error}")))?;
    adapt_process(&mut process);
    process.set_terminal(Some(terminal));
    serde_json::to_vec(&process).map_err(|error| SpecError::Write(error.to_string()))
}

/// Other limits for a container, for the guest and for whoever counts them.
#[derive(Debug)]
pub struct Update {
    /// Those that mean something in the guest.
    pub resources: LinuxResources,
    /// The same as JSON.
    pub json: Vec<u8>,
}

/// Adapts new limits of a container, given as JSON.
///
/// # Errors
/// When they are no OCI resources.
pub fn adapt_update(resources: &[u8]) -> Result<Update, SpecError> {
    let resources: LinuxResources = serde_json::from_slice(resources)
        .map_err(|error| SpecError::Write(format!("not OCI resources: {error}")))?;
    let resources = linux::adapt_resources(resources);
    let json =
        serde_json::to_vec(&resources).map_err(|error| SpecError::Write(error.to_string()))?;
    Ok(Update { resources, json })
}

/// The container's directory in the share, as the guest sees it.
fn guest_directory(id: &str) -> PathBuf {
    Path::new(SHARE_MOUNT).join(id)
}

/// Labels of the host's security modules mean nothing in the guest.
fn adapt_process(process: &mut Process) {
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
}

fn refuse_hooks(hooks: Option<&Hooks>) -> Result<(), SpecError> {
    let Some(hooks) = hooks else {
        return Ok(());
    };
    // The getter of the hooks that the specification has replaced is deprecated with them; specs still use them.
    #[allow(deprecated)]
    let prestart = hooks.prestart();
    let kinds = [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    match kinds
        .into_iter()
        .find(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty()))
    {
        Some((kind, _)) => Err(SpecError::Hooks(kind)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(more: serde_json::Value) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0},
                "apparmorProfile": "cri-containerd.apparmor.d", "selinuxLabel": "x:y:z",
            },
            "annotations": {"io.kubernetes.cri.sandbox-id": "s"},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn adapted(more: serde_json::Value) -> Result<GuestSpec, SpecError> {
        adapt(&spec(more), "c1", &PodSpec::default(), &[])
    }

    #[test]
    fn what_is_the_hosts_does_not_reach_the_guest() {
        let guest =
            adapted(json!({"linux": {"cgroupsPath": "/kubepods/x", "mountLabel": "l"}})).unwrap();
        let text = String::from_utf8(guest.to_json().unwrap()).unwrap();
        for word in [
            "apparmor",
            "selinux",
            "annotations",
            "kubepods",
            "mountLabel",
        ] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        let root = guest.spec.root().as_ref().unwrap();
        assert_eq!(root.path(), Path::new("/run/orlop/share/c1/rootfs"));
        assert_eq!(root.readonly(), Some(true));
        let linux = guest.spec.linux().as_ref().unwrap();
        assert_eq!(
            linux.cgroups_path().as_deref(),
            Some(Path::new("/orlop/c1"))
        );
    }

    #[test]
    fn hooks_are_refused_and_their_absence_is_not() {
        let hooks = json!({"hooks": {"createRuntime": [{"path": "/usr/bin/hook"}]}});
        assert_eq!(
            adapted(hooks).unwrap_err(),
            SpecError::Hooks("createRuntime")
        );
        assert!(adapted(json!({"hooks": {"prestart": []}})).is_ok());
    }

    #[test]
    fn a_spec_without_a_process_is_refused() {
        let mut spec = spec(json!({}));
        spec.set_process(None);
        assert_eq!(
            adapt(&spec, "c", &PodSpec::default(), &[]).unwrap_err(),
            SpecError::NoProcess
        );
    }

    #[test]
    fn an_update_loses_what_is_the_hosts() {
        let resources = json!({
            "cpu": {"quota": 5, "cpus": "0-3"},
            "memory": {"limit": 7},
            "blockIO": {"weight": 10},
        });
        let update = adapt_update(resources.to_string().as_bytes()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&update.json).unwrap();
        assert_eq!(json, json!({"cpu": {"quota": 5}, "memory": {"limit": 7}}));
        assert!(adapt_update(b"").is_err());
    }

    #[test]
    fn an_exec_gets_its_terminal_and_loses_its_labels() {
        let process = json!({"cwd": "/", "args": ["ls"], "user": {"uid": 1, "gid": 2}, "apparmorProfile": "p"});
        let adapted = adapt_exec(process.to_string().as_bytes(), true).unwrap();
        let process: serde_json::Value = serde_json::from_slice(&adapted).unwrap();
        assert_eq!(process["terminal"], true);
        assert_eq!(process["user"]["uid"], 1);
        assert!(process.get("apparmorProfile").is_none());
        assert!(adapt_exec(b"[]", false).is_err());
    }
}
