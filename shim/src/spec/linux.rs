//! A spec's Linux part: namespaces, cgroup and limits.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Spec};

use super::devices::{self, HostDisk};
use super::{GUEST_CGROUP, PodSpec, SpecError};

/// Adapts the Linux part of container `id`'s spec, and answers the disks that the container is given.
pub(super) fn adapt(spec: &mut Spec, id: &str, pod: &PodSpec) -> Result<Vec<HostDisk>, SpecError> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    refuse_user_namespace(&linux)?;
    linux.set_cgroups_path(Some(PathBuf::from(GUEST_CGROUP).join(id)));
    linux
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_memory_policy(None)
        .set_net_devices(None);

    let given = linux.namespaces().clone().unwrap_or_default();
    let namespaces: Vec<_> = given.iter().filter_map(adapt_namespace).collect();
    let own_uts = namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Uts);
    linux.set_namespaces(Some(namespaces));

    // The pod's settings are the sandbox's to make, and the sandbox has no process in the guest.
    let mut sysctl = pod.sysctl.clone();
    sysctl.extend(linux.sysctl().clone().unwrap_or_default());
    linux.set_sysctl((!sysctl.is_empty()).then_some(sysctl));

    let disks = devices::adapt(&mut linux);
    if let Some(resources) = linux.resources().clone() {
        linux.set_resources(Some(adapt_resources(resources)));
    }
    spec.set_linux(Some(linux));
    if own_uts && spec.hostname().is_none() {
        spec.set_hostname(pod.hostname.clone());
    }
    if !own_uts {
        // Without a namespace of its own it would rename the guest.
        spec.set_hostname(None).set_domainname(None);
    }
    Ok(disks)
}

fn refuse_user_namespace(linux: &Linux) -> Result<(), SpecError> {
    let maps = [linux.uid_mappings(), linux.gid_mappings()];
    if maps.into_iter().flatten().any(|map| !map.is_empty()) {
        return Err(SpecError::UserNamespace);
    }
    Ok(())
}

/// The namespace as the guest makes it, or none where the container shares the guest's.
fn adapt_namespace(namespace: &LinuxNamespace) -> Option<LinuxNamespace> {
    let own = || {
        let mut own = namespace.clone();
        own.set_path(None);
        Some(own)
    };
    match namespace.typ() {
        // The guest is the pod: its network is the pod's. A user namespace without a map is the guest's own.
        LinuxNamespaceType::Network | LinuxNamespaceType::User => None,
        // One that joins the sandbox's joins the guest's.
        LinuxNamespaceType::Ipc | LinuxNamespaceType::Pid if joins(namespace) => None,
        // The sandbox's host name is set in each container's own namespace instead.
        _ => own(),
    }
}

/// Whether it is one that is there already: the sandbox's.
pub(super) fn joins(namespace: &LinuxNamespace) -> bool {
    let path = namespace.path().as_ref();
    path.is_some_and(|path| !path.as_os_str().is_empty())
}

/// Leaves the limits that mean the same in the guest, and drops those that name the host's CPUs, nodes and devices.
pub(super) fn adapt_resources(mut resources: LinuxResources) -> LinuxResources {
    if let Some(mut cpu) = resources.cpu().clone() {
        cpu.set_cpus(None)
            .set_mems(None)
            .set_realtime_period(None)
            .set_realtime_runtime(None);
        resources.set_cpu(Some(cpu));
    }
    resources
        .set_block_io(None)
        .set_hugepage_limits(None)
        .set_network(None)
        .set_rdma(None);
    if let Some(mut unified) = resources.unified().clone() {
        unified.retain(|key, _| {
            ["memory.", "pids.", "cpu."]
                .iter()
                .any(|prefix| key.starts_with(prefix))
        });
        resources.set_unified(Some(unified));
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn adapted(linux: serde_json::Value, pod: &PodSpec) -> Result<Spec, SpecError> {
        let mut spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": linux})).unwrap();
        adapt(&mut spec, "c1", pod)?;
        Ok(spec)
    }

    fn namespaces(spec: &Spec) -> Vec<(String, bool)> {
        let linux = spec.linux().as_ref().unwrap();
        let all = linux.namespaces().clone().unwrap();
        all.iter()
            .map(|n| (n.typ().to_string(), n.path().is_some()))
            .collect()
    }

    #[test]
    fn a_lone_container_keeps_its_own_namespaces_but_the_network() {
        let all = json!({"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}
        ]});
        let spec = adapted(all, &PodSpec::default()).unwrap();
        let kept: Vec<_> = namespaces(&spec)
            .into_iter()
            .map(|(kind, _)| kind)
            .collect();
        assert_eq!(kept, ["pid", "ipc", "uts", "mnt", "cgroup"]);
    }

    #[test]
    fn what_a_pods_container_shares_with_its_sandbox_it_shares_with_the_guest() {
        let pod = PodSpec {
            hostname: Some("web-0".into()),
            sysctl: [("net.core.somaxconn".to_owned(), "9".to_owned())].into(),
            ..PodSpec::default()
        };
        let all = json!({
            "namespaces": [
                {"type": "pid"}, {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "uts", "path": "/proc/9/ns/uts"},
                {"type": "mount"}, {"type": "network", "path": "/run/netns/x"},
            ],
            "sysctl": {"kernel.shmmax": "1"},
        });
        let spec = adapted(all, &pod).unwrap();
        let own = |kind: &str| (kind.to_owned(), false);
        assert_eq!(namespaces(&spec), [own("pid"), own("uts"), own("mnt")]);
        assert_eq!(spec.hostname().as_deref(), Some("web-0"));
        let sysctl = spec.linux().as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!(sysctl.len(), 2);
        assert_eq!(sysctl["net.core.somaxconn"], "9");

        let shared_pids = json!({"namespaces": [{"type": "pid", "path": "/proc/9/ns/pid"}]});
        let spec = adapted(shared_pids, &pod).unwrap();
        assert!(namespaces(&spec).is_empty());
        assert_eq!(spec.hostname(), &None, "it would rename the guest");
    }

    #[test]
    fn mapped_user_ids_are_refused() {
        let mapped = json!({"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]});
        assert_eq!(
            adapted(mapped, &PodSpec::default()).unwrap_err(),
            SpecError::UserNamespace
        );
    }

    #[test]
    fn the_hosts_devices_and_cpus_are_left_out() {
        let linux = json!({
            "devices": [
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
                {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
                {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232},
            ],
            "resources": {
                "cpu": {"shares": 512, "quota": 1000, "cpus": "0-3", "mems": "0"},
                "memory": {"limit": 1048576},
                "blockIO": {"weight": 10},
                "unified": {"memory.high": "1", "io.max": "8:0 rbps=1"},
                "devices": [{"allow": false, "access": "rwm"}],
            },
        });
        let spec = adapted(linux, &PodSpec::default()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let devices = linux.devices().clone().unwrap();
        assert_eq!(devices.len(), 1);
        let resources = linux.resources().clone().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota()), (Some(512), Some(1000)));
        assert_eq!((cpu.cpus(), cpu.mems()), (&None, &None));
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1048576));
        assert!(resources.block_io().is_none());
        assert_eq!(resources.unified().clone().unwrap().len(), 1);
        assert_eq!(resources.devices().clone().unwrap().len(), 1);
    }
}
