//! The VMs of pods: where the shim has their control sockets, and which pods they are of.
//!
//! The shim keeps a directory for each pod, `<state>/<containerd's namespace>/<sandbox id>`, with the VM's control socket in it and, in
//! `state.json`, what Kubernetes calls the pod.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use orlop_vmm::config::VmName;
use serde::Deserialize;

use crate::container::Settings;

/// The control socket in a pod's directory.
const SOCKET: &str = "vmm.sock";
/// More than a state file has, in bytes.
const STATE_LIMIT: u64 = 1 << 20;

/// What Kubernetes calls a pod.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

/// A pod with a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The sandbox's id, or the container's that has a VM of its own.
    pub id: String,
    /// What Kubernetes calls it; nothing for a container of `ctr run`.
    pub name: Option<PodName>,
    /// The VM's control socket.
    pub socket: PathBuf,
}

/// A control socket's path that is short enough to connect to, whatever the directory's.
pub struct ShortPath {
    /// The path.
    pub path: PathBuf,
    /// The directory, as long as the path is used.
    _directory: File,
}

/// The pods of this machine that have a VM, in the order of their directories. Whoever may not read the shim's directory sees none.
pub fn all() -> Vec<Pod> {
    // A configuration that is wrong is the shim's to complain of.
    Settings::load().map_or_else(|_| Vec::new(), |settings| below(&settings.state))
}

fn below(state: &Path) -> Vec<Pod> {
    let directories = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let mut pods: Vec<_> = directories(state.to_owned())
        .flat_map(|namespace| directories(namespace.path()))
        .filter_map(|pod| of(&pod.path()))
        .collect();
    pods.sort_by(|one, other| one.socket.cmp(&other.socket));
    pods
}

fn of(directory: &Path) -> Option<Pod> {
    let socket = directory.join(SOCKET);
    socket.symlink_metadata().ok()?;
    let id = directory.file_name()?.to_str()?.to_owned();
    // What is no VM's name is nothing that the shim has made.
    id.parse::<VmName>().ok()?;
    Some(Pod {
        id,
        name: name_in(&directory.join("state.json")),
        socket,
    })
}

fn name_in(file: &Path) -> Option<PodName> {
    use std::io::Read as _;
    #[derive(Deserialize)]
    struct State {
        pod: Option<PodName>,
    }
    let mut text = Vec::new();
    let file = File::open(file).ok()?;
    file.take(STATE_LIMIT).read_to_end(&mut text).ok()?;
    serde_json::from_slice::<State>(&text).ok()?.pod
}

/// The pod whose id begins with `text`, if there is just one.
pub fn named(text: &str, pods: Vec<Pod>) -> Option<Pod> {
    let mut found = pods.into_iter().filter(|pod| pod.id.starts_with(text));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

impl ShortPath {
    /// That of `socket`. A unix socket's path has at most 107 bytes, and a sandbox's id alone may have 76.
    ///
    /// # Errors
    /// When its directory is not there.
    pub fn of(socket: &Path) -> std::io::Result<Self> {
        let directory = socket.parent().unwrap_or(Path::new("/"));
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        Ok(ShortPath {
            path: path.join(socket.file_name().unwrap_or_default()),
            _directory: directory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn pods_with_a_vm_are_found_with_their_names() {
        let state = tempfile::tempdir().unwrap();
        let make = |directory: &str, content: Option<&str>| {
            let directory = state.path().join(directory);
            fs::create_dir_all(&directory).unwrap();
            if let Some(content) = content {
                fs::write(directory.join("state.json"), content).unwrap();
                fs::write(directory.join(SOCKET), "").unwrap();
            }
        };
        make(
            "k8s.io/abc",
            Some(r#"{"pod":{"namespace":"prod","name":"web-0"},"shim":null}"#),
        );
        make("k8s.io/abd", Some(r#"{"pod":null}"#));
        make("k8s.io/without", None);
        make("default/lone", Some("{"));
        make("vm", None);
        let pods = below(state.path());
        let ids: Vec<_> = pods.iter().map(|pod| pod.id.as_str()).collect();
        assert_eq!(ids, ["lone", "abc", "abd"]);
        let name = pods[1].name.clone().unwrap();
        assert_eq!((&*name.namespace, &*name.name), ("prod", "web-0"));
        assert_eq!((&pods[0].name, &pods[2].name), (&None, &None));
        assert_eq!(named("abc", pods.clone()).unwrap().id, "abc");
        assert_eq!(named("lo", pods.clone()).unwrap().id, "lone");
        assert_eq!(named("ab", pods.clone()), None, "there are two");
        assert_eq!(named("x", pods), None);
        assert!(below(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_socket_at_the_end_of_a_long_path_can_be_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(120));
        fs::create_dir(&long).unwrap();
        let socket = long.join(SOCKET);
        let short = ShortPath::of(&socket).unwrap();
        let _listener = UnixListener::bind(&short.path).unwrap();
        assert!(UnixStream::connect(&socket).is_err());
        UnixStream::connect(&short.path).unwrap();
    }
}
