//! Fits the host's OCI spec to the guest.
//!
//! The host has already put the guest's paths into it. What is left to do here is what the guest alone knows or insists on: where
//! the root file system and the control group are, that all containers share the guest's network, and what this
//! guest's kernel cannot do.

use std::fs;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Capabilities, Capability, Hooks, LinuxNamespaceType, Process, Spec};

use crate::error::{Error, Result};
use crate::seccomp::Filter;

/// The bundle's directory within the share.
#[derive(Debug, Clone)]
pub struct BundlePath(PathBuf);

impl BundlePath {
    /// Checks that the path stays below the share.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when it is empty, absolute, or goes up.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if text.is_empty() || text.len() > 1024 || text.contains('\0') || !plain {
            return Err(Error::Invalid(
                "the bundle must be a path below the share".to_owned(),
            ));
        }
        Ok(Self(path.to_owned()))
    }

    /// The directory of the root file system.
    pub fn rootfs(&self, share: &Path) -> PathBuf {
        share.join(&self.0).join("rootfs")
    }
}

/// A spec that fits.
#[derive(Debug)]
pub struct GuestSpec {
    /// The spec for libcontainer.
    pub spec: Spec,
    /// Kernel settings of namespaces that the container shares with the guest.
    pub guest_sysctls: Vec<(String, String)>,
    /// Whether its processes run behind a seccomp filter.
    pub filtered: bool,
}

/// Reads a spec and fits it to the guest.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is not a spec, or asks for what a guest does not do.
pub fn adapt(json: &[u8], rootfs: &Path, cgroup: &Path) -> Result<GuestSpec> {
    let mut spec: Spec = serde_json::from_slice(json)
        .map_err(|error| Error::Invalid(format!("malformed OCI spec: {error}")))?;

    let mut root = spec.root().clone().unwrap_or_default();
    // The default of the crate is a read-only root, the specification's is a writable one.
    if spec.root().is_none() {
        root.set_readonly(Some(false));
    }
    root.set_path(rootfs.to_owned());
    spec.set_root(Some(root));

    let seccomp = spec.linux().as_ref().and_then(|it| it.seccomp().as_ref());
    let filtered = seccomp.is_some();
    if let Some(seccomp) = seccomp {
        // Here for its reasons to refuse a profile; whoever makes the process makes the filter.
        Filter::of(seccomp).map_err(|error| Error::Invalid(error.to_string()))?;
    }
    let process = spec
        .process_mut()
        .as_mut()
        .ok_or_else(|| Error::Invalid("the spec has no process".to_owned()))?;
    adapt_process(process, filtered);

    // The getter of the hooks that the specification has replaced is deprecated with them; specs still use them.
    #[allow(deprecated)]
    let prestart = Hooks::prestart;
    if spec.hooks().as_ref().is_some_and(|hooks| {
        [
            prestart(hooks),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ]
        .iter()
        .any(|hooks| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()))
    }) {
        return Err(Error::Invalid(
            "the spec has hooks, which are programs of the host; they cannot run in a guest"
                .to_owned(),
        ));
    }
    spec.set_hooks(None);

    let linux = spec
        .linux_mut()
        .as_mut()
        .ok_or_else(|| Error::Invalid("the spec has no linux section".to_owned()))?;
    linux.set_cgroups_path(Some(cgroup.to_owned()));
    // Profiles and labels are the host's; the guest's kernel has none of them.
    linux.set_mount_label(None);
    linux.set_intel_rdt(None);
    // To libcontainer every propagation is recursive, and the forms that say so are unknown. containerd's CRI uses them.
    let propagation = linux.rootfs_propagation().as_deref();
    let propagation = match propagation {
        Some("rshared") => Some("shared"),
        Some("rslave") => Some("slave"),
        Some("rprivate") => Some("private"),
        other => other,
    }
    .map(str::to_owned);
    linux.set_rootfs_propagation(propagation);

    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    if !namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount)
    {
        return Err(Error::Invalid(
            "the spec has no mount namespace; a container in a guest needs one".to_owned(),
        ));
    }
    let own_ipc = namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Ipc);
    linux.set_namespaces(Some(namespaces));

    let mut sysctls = linux.sysctl().clone().unwrap_or_default();
    let guest_sysctls = sysctls
        .extract_if(|key, _| is_network_sysctl(key) || (!own_ipc && is_ipc_sysctl(key)))
        .collect();
    linux.set_sysctl((!sysctls.is_empty()).then_some(sysctls));

    Ok(GuestSpec {
        spec,
        guest_sysctls,
        filtered,
    })
}

/// Reads an OCI `process` object, of a container that is `filtered` or not, and fits it to the guest.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is not one.
pub fn process(json: &[u8], filtered: bool) -> Result<Process> {
    let mut process: Process = serde_json::from_slice(json)
        .map_err(|error| Error::Invalid(format!("malformed OCI process: {error}")))?;
    adapt_process(&mut process, filtered);
    Ok(process)
}

fn adapt_process(process: &mut Process, filtered: bool) {
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    if filtered && process.no_new_privileges() != Some(true) {
        lend_sys_admin(process);
    }
}

/// Has the process still hold CAP_SYS_ADMIN when it executes the user's program, for without `no_new_privs` the kernel lets nobody else
/// load a filter. The program does not get it: of these two sets nothing outlasts an execution, which makes the new ones
/// of the bounding, inheritable and ambient sets (capabilities(7)).
fn lend_sys_admin(process: &mut Process) {
    let Some(mut capabilities) = process.capabilities().clone() else {
        return;
    };
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone()?;
        set.insert(Capability::SysAdmin);
        Some(set)
    };
    let (effective, permitted) = (
        with(capabilities.effective()),
        with(capabilities.permitted()),
    );
    capabilities
        .set_effective(effective)
        .set_permitted(permitted);
    process.set_capabilities(Some(capabilities));
}

fn is_network_sysctl(key: &str) -> bool {
    key.starts_with("net.") || key.starts_with("net/")
}

/// The settings that a container without an IPC namespace of its own shares with the pod (ipc_namespaces(7)).
fn is_ipc_sysctl(key: &str) -> bool {
    let key = key.replace('/', ".");
    ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// Applies settings to the guest itself.
///
/// # Errors
/// When a key is not one, or the kernel refuses.
pub fn apply_sysctls(sysctls: &[(String, String)]) -> Result<()> {
    for (key, value) in sysctls {
        let path = sysctl_path(key)
            .ok_or_else(|| Error::Invalid(format!("sysctl {key:?} is malformed")))?;
        fs::write(&path, value)
            .map_err(|error| Error::system(format_args!("sysctl {key}={value}"), error))?;
    }
    Ok(())
}

fn sysctl_path(key: &str) -> Option<PathBuf> {
    // A key with slashes may have dots in its names (those of interfaces).
    let key = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    let plain = Path::new(&key)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    (plain && !key.contains('\0')).then(|| Path::new("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{
        "ociVersion": "1.0.2",
        "root": {"path": "/host/rootfs", "readonly": true},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "apparmorProfile": "docker-default"},
        "linux": {
            "cgroupsPath": "/host/group",
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.pid_max": "1"},
            "rootfsPropagation": "rslave",
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/1/ns/net"}, {"type": "network"}]
        }
    }"#;

    fn adapted(json: &str) -> Result<GuestSpec> {
        adapt(json.as_bytes(), Path::new("/r"), Path::new("/orlop/c"))
    }

    #[test]
    fn takes_the_guests_places_and_drops_what_is_the_hosts() {
        let guest = adapted(SPEC).unwrap();
        let root = guest.spec.root().as_ref().unwrap();
        assert_eq!(root.path(), Path::new("/r"));
        assert_eq!(root.readonly(), Some(true));
        let linux = guest.spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/orlop/c")));
        assert!(linux.seccomp().is_some() && guest.filtered);
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("slave"));
        let namespaces = linux.namespaces().as_ref().unwrap();
        assert_eq!(namespaces.len(), 1);
        let sysctl = linux.sysctl().as_ref().unwrap();
        assert_eq!(sysctl.len(), 1);
        assert_eq!(
            guest.guest_sysctls,
            [("net.ipv4.ip_forward".to_owned(), "1".to_owned())]
        );
        let process = guest.spec.process().as_ref().unwrap();
        assert!(process.apparmor_profile().is_none());
    }

    #[test]
    fn who_needs_it_to_load_a_filter_is_lent_a_capability() {
        let sets = |json: &str, filtered| {
            let process = process(json.as_bytes(), filtered).unwrap();
            let sets = process.capabilities().clone().unwrap();
            let count = |set: &Option<Capabilities>| set.as_ref().map(|set| set.len());
            (
                count(sets.effective()),
                count(sets.permitted()),
                count(sets.bounding()),
                count(sets.inheritable()),
            )
        };
        let json = r#"{"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": {"effective": ["CAP_KILL"], "permitted": ["CAP_KILL"], "bounding": ["CAP_KILL"]}}"#;
        let given = (Some(1), Some(1), Some(1), None);
        assert_eq!(sets(json, false), given);
        assert_eq!(sets(json, true), (Some(2), Some(2), Some(1), None));
        let settled = json.replacen('{', "{\"noNewPrivileges\": true,", 1);
        assert_eq!(sets(&settled, true), given);
        let unsettled = json.replacen('{', "{\"noNewPrivileges\": false,", 1);
        assert_eq!(sets(&unsettled, true).0, Some(2));
    }

    #[test]
    fn settings_of_shared_namespaces_are_the_guests() {
        let shm = SPEC.replacen("kernel.pid_max", "kernel.shmmax", 1);
        assert_eq!(adapted(&shm).unwrap().guest_sysctls.len(), 2);
        let own = shm.replacen(
            "{\"type\": \"mount\"}",
            "{\"type\": \"mount\"}, {\"type\": \"ipc\"}",
            1,
        );
        assert_eq!(adapted(&own).unwrap().guest_sysctls.len(), 1);
        let other = SPEC.replacen("kernel.pid_max", "kernel.panic", 1);
        assert_eq!(adapted(&other).unwrap().guest_sysctls.len(), 1);
    }

    #[test]
    fn refuses_what_a_guest_does_not_do() {
        for (from, to, why) in [
            ("\"ociVersion\"", "ociVersion", "malformed"),
            ("\"process\"", "\"other\"", "no process"),
            ("\"linux\"", "\"windows2\"", "no linux"),
            ("{\"type\": \"mount\"}, ", "", "mount namespace"),
            (
                "\"linux\"",
                "\"hooks\": {\"poststop\": [{\"path\": \"/bin/x\"}]}, \"linux\"",
                "hooks",
            ),
            (
                "\"linux\"",
                "\"hooks\": {\"prestart\": [{\"path\": \"/bin/x\"}]}, \"linux\"",
                "hooks",
            ),
            ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE", "SCMP_ACT_TRACE"),
        ] {
            let error = adapted(&SPEC.replacen(from, to, 1)).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn empty_hooks_are_none() {
        let json = SPEC.replacen("\"linux\"", "\"hooks\": {\"poststop\": []}, \"linux\"", 1);
        assert!(adapted(&json).unwrap().spec.hooks().is_none());
    }

    #[test]
    fn bundles_stay_below_the_share() {
        let bundle = BundlePath::parse("web/bundle").unwrap();
        assert_eq!(
            bundle.rootfs(Path::new("/share")),
            Path::new("/share/web/bundle/rootfs")
        );
        for bad in ["", "/", "/etc", "..", "a/../..", ".", "a\0"] {
            assert!(BundlePath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn settings_stay_where_settings_are() {
        assert_eq!(
            sysctl_path("net.ipv4.ip_forward").unwrap(),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        for bad in ["net/../kernel/panic", "net/\0", "/net/x", ".."] {
            assert!(sysctl_path(bad).is_none(), "{bad:?}");
        }
    }
}
