//! A spec's mounts: those of the host's files become binds of the share, or volumes that the guest has copies of; the others are the
//! guest's to make.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::linux::joins;
use super::{GUEST_SHM, HostBind, PodFile, SpecError};

/// File systems that show a kernel. Bound from the host they would show the host's; the guest's own are what is meant.
const KERNEL_FILE_SYSTEMS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where a container has its shared memory.
const SHM: &str = "/dev/shm";
/// How that of the pod is bound there.
const SHARED_MEMORY: [&str; 5] = ["bind", "rprivate", "nosuid", "noexec", "nodev"];

/// Where the kubelet keeps the volumes that it swaps as a whole when they change: in these directories of its own.
const SWAPPED_WHOLE: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
    "kubernetes.io~secret",
];

/// The directories behind the spec's mounts that somebody may watch: they change as a whole, and no container writes to them.
pub fn watched(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    let watched = mounts.filter(|mount| is_bind(mount) && is_readonly(mount));
    let sources = watched.filter_map(|mount| mount.source().clone());
    let mut sources: Vec<_> = sources.filter(|source| is_swapped_whole(source)).collect();
    sources.sort();
    sources.dedup();
    sources
}

fn is_swapped_whole(source: &Path) -> bool {
    let kind = source.parent().and_then(Path::file_name);
    kind.is_some_and(|kind| SWAPPED_WHOLE.iter().any(|known| kind == OsStr::new(known)))
}

/// Rewrites the spec's bind mounts to sources below `guest_mounts`, and answers what must be bound there. Those of `volumes` become the
/// directories of these numbers in `guest_volumes`.
pub(super) fn adapt(
    spec: &mut Spec,
    guest_mounts: &Path,
    volumes: &[PathBuf],
    guest_volumes: &Path,
) -> Result<Vec<HostBind>, SpecError> {
    let mut binds = Vec::new();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let shares_memory = joins_ipc(spec);
    for mount in &mut mounts {
        let destination = mount.destination().clone();
        if destination == Path::new(SHM) && shares_memory && !is_bind(mount) {
            // Whoever has the shim make sandboxes has no such directory of the pod's to bind: the namespace says that it is shared.
            mount.set_typ(Some("bind".to_owned()));
            mount.set_source(Some(PathBuf::from(GUEST_SHM)));
            mount.set_options(Some(SHARED_MEMORY.map(str::to_owned).into()));
        }
        if !is_bind(mount) {
            continue;
        }
        let source = mount
            .source()
            .clone()
            .filter(|source| !source.as_os_str().is_empty());
        let source = source.ok_or_else(|| SpecError::NoSource(destination.clone()))?;
        if destination == Path::new(SHM) {
            // The pod's shared memory is shared in the guest's memory, not over a file system of the host.
            mount.set_source(Some(PathBuf::from(GUEST_SHM)));
            continue;
        }
        if KERNEL_FILE_SYSTEMS
            .iter()
            .any(|kernels| source.starts_with(kernels))
        {
            continue;
        }
        if let Some(number) = volumes.iter().position(|volume| *volume == source)
            && is_readonly(mount)
        {
            mount.set_source(Some(guest_volumes.join(number.to_string())));
            mount.set_typ(Some("bind".to_owned()));
            continue;
        }
        let bind = HostBind {
            source,
            recursive: !has(mount, "bind"),
            readonly: is_readonly(mount),
        };
        mount.set_source(Some(guest_mounts.join(binds.len().to_string())));
        mount.set_typ(Some("bind".to_owned()));
        binds.push(bind);
    }
    spec.set_mounts(Some(mounts));
    Ok(binds)
}

/// Whether a container is in the pod's IPC namespace, with the pod's shared memory.
fn joins_ipc(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let mut namespaces = linux
        .and_then(|it| it.namespaces().as_ref())
        .into_iter()
        .flatten();
    namespaces.any(|it| it.typ() == LinuxNamespaceType::Ipc && joins(it))
}

/// Adds the files that the pod's containers share, but where the spec has something else.
pub(super) fn add_shared(spec: &mut Spec, files: &[PodFile]) {
    let readonly = spec.root().as_ref().and_then(|root| root.readonly());
    let access = if readonly == Some(true) { "ro" } else { "rw" };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for file in files {
        let destination = Path::new(file.destination);
        if mounts
            .iter()
            .any(|mount| mount.destination() == destination)
        {
            continue;
        }
        let mut mount = Mount::default();
        mount
            .set_destination(destination.to_owned())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(file.source.clone()))
            .set_options(Some(
                ["rbind", "rprivate", access].map(str::to_owned).into(),
            ));
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, "bind") || has(mount, "rbind")
}

fn is_readonly(mount: &Mount) -> bool {
    has(mount, "ro") || has(mount, "rro")
}

fn has(mount: &Mount, name: &str) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| option == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn adapted(mounts: serde_json::Value) -> Result<(Vec<Mount>, Vec<HostBind>), SpecError> {
        let spec = json!({"ociVersion": "1.0.2", "mounts": mounts});
        let mut spec: Spec = serde_json::from_value(spec).unwrap();
        let binds = adapt(
            &mut spec,
            Path::new("/share/c/mounts"),
            &["/pods/u/volumes/kubernetes.io~secret/s".into()],
            Path::new("/volumes/c"),
        )?;
        Ok((spec.mounts().clone().unwrap(), binds))
    }

    #[test]
    fn memory_is_shared_by_whoever_is_in_the_pod_s_ipc_namespace() {
        for (path, source) in [("/proc/9/ns/ipc", GUEST_SHM), ("", "shm")] {
            let spec = json!({
                "ociVersion": "1.0.2",
                "linux": {"namespaces": [{"type": "ipc", "path": path}]},
                "mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nodev", "mode=1777"]}],
            });
            let mut spec: Spec = serde_json::from_value(spec).unwrap();
            let none = Path::new("/none");
            assert_eq!(adapt(&mut spec, none, &[], none), Ok(Vec::new()));
            let mounts = spec.mounts().clone().unwrap();
            let shm = mounts.first().unwrap();
            assert_eq!(shm.source().as_deref(), Some(Path::new(source)));
            assert_eq!(is_bind(shm), source == GUEST_SHM);
        }
    }

    #[test]
    fn a_container_has_the_pod_s_files_but_where_it_says_otherwise() {
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/etc/hosts", "type": "bind", "source": "/k/hosts", "options": ["rbind"]}],
        });
        let mut spec: Spec = serde_json::from_value(spec).unwrap();
        let file = |destination| PodFile {
            destination,
            source: "/run/pod/file".into(),
        };
        add_shared(&mut spec, &[file("/etc/hosts"), file("/etc/resolv.conf")]);
        let mounts = spec.mounts().clone().unwrap();
        let [hosts, resolv] = &mounts[..] else {
            panic!("{mounts:?}");
        };
        assert_eq!(hosts.source().as_deref(), Some(Path::new("/k/hosts")));
        assert_eq!(resolv.destination(), Path::new("/etc/resolv.conf"));
        assert!(is_bind(resolv) && is_readonly(resolv));
    }

    #[test]
    fn binds_go_through_the_share_in_order() {
        let (mounts, binds) = adapted(json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/hosts", "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/data", "source": "/srv/data", "options": ["bind", "ro"]},
        ]))
        .unwrap();
        let source = |n: usize| mounts[n].source().clone().unwrap();
        assert_eq!(source(0), Path::new("proc"));
        assert_eq!(source(1), Path::new("/share/c/mounts/0"));
        assert_eq!(source(2), Path::new("/share/c/mounts/1"));
        assert_eq!(mounts[2].typ().as_deref(), Some("bind"));
        let bind = |source: &str, recursive, readonly| HostBind {
            source: source.into(),
            recursive,
            readonly,
        };
        assert_eq!(
            binds,
            [
                bind("/var/lib/hosts", true, false),
                bind("/srv/data", false, true)
            ]
        );
    }

    #[test]
    fn a_volume_that_somebody_may_watch_is_the_guest_s_own() {
        let mounts = json!([
            {"destination": "/s", "type": "bind", "source": "/pods/u/volumes/kubernetes.io~secret/s", "options": ["rbind", "ro"]},
            {"destination": "/w", "type": "bind", "source": "/pods/u/volumes/kubernetes.io~secret/s", "options": ["rbind", "rw"]},
            {"destination": "/e", "type": "bind", "source": "/pods/u/volumes/kubernetes.io~empty-dir/e", "options": ["rbind", "ro"]},
            {"destination": "/f", "type": "bind", "source": "/pods/u/volume-subpaths/s/c/0", "options": ["rbind", "ro"]},
        ]);
        let spec = json!({"ociVersion": "1.0.2", "mounts": mounts});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        assert_eq!(
            watched(&spec),
            [Path::new("/pods/u/volumes/kubernetes.io~secret/s")]
        );
        let (mounts, binds) = adapted(mounts).unwrap();
        let sources: Vec<_> = mounts
            .iter()
            .map(|mount| mount.source().clone().unwrap())
            .collect();
        assert_eq!(
            sources,
            [
                "/volumes/c/0",
                "/share/c/mounts/0",
                "/share/c/mounts/1",
                "/share/c/mounts/2"
            ]
            .map(PathBuf::from)
        );
        assert_eq!(binds.len(), 3);
    }

    #[test]
    fn shared_memory_and_kernel_file_systems_are_the_guests() {
        let (mounts, binds) = adapted(json!([
            {"destination": "/dev/shm", "type": "bind", "source": "/run/x/shm", "options": ["rbind"]},
            {"destination": "/host/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
        ]))
        .unwrap();
        assert!(binds.is_empty());
        assert_eq!(
            mounts[0].source().as_deref(),
            Some(Path::new("/run/orlop/shm"))
        );
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/sys")));
        // A private one, as `ctr run` asks for, is the guest's anyway.
        let (mounts, _) =
            adapted(json!([{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]))
                .unwrap();
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("shm")));
    }

    #[test]
    fn a_bind_of_nothing_is_refused() {
        let error = adapted(json!([{"destination": "/x", "type": "bind"}])).unwrap_err();
        assert_eq!(error, SpecError::NoSource("/x".into()));
    }
}
