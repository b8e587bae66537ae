//! A pod's directory, and what is written there for whoever must clean up without the shim.
//!
//! ```text
//! <state>/<namespace>/<sandbox id>/   0700
//!   state.json          the processes of the pod, by id and start time, the shim's socket, its cgroup, what was made in its network
//!   shim.log vmm.log console.log
//!   vmm.sock vsock.sock vsock.sock_1024 fs.sock      the shim's working directory is this one, see `sockets`
//!   share/              the guest's files: <container id>/{rootfs, mounts/<n>}; nothing is mounted here
//!   shared/             the same directory once more, read-only, and with everything mounted: what virtiofsd serves
//! ```

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::mounts::table;
use crate::network::Joined;
use crate::process::identity::ProcessIdentity;
use crate::spec::PodName;

/// The sockets of a pod, relative to its directory.
///
/// A socket's path has 107 bytes at most, and a sandbox's id alone may have 64. So the directory is the working directory
/// of the shim and of the VMM, and they name the sockets by these.
pub mod sockets {
    /// The VMM's control socket.
    pub const VMM: &str = "vmm.sock";
    /// The VMM's vsock; connections of the guest to port N come to the path with `_N` appended.
    pub const VSOCK: &str = "vsock.sock";
    /// Where virtiofsd listens.
    pub const FS: &str = "fs.sock";
}

/// A pod's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

/// What state.json holds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct PodState {
    /// The shim.
    pub shim: Option<ProcessIdentity>,
    /// The shim's socket.
    pub socket: PathBuf,
    /// The VMM, while there is one.
    pub vmm: Option<ProcessIdentity>,
    /// The virtio-fs daemon, while there is one.
    pub virtiofsd: Option<ProcessIdentity>,
    /// What was made in the pod's network namespace, while it is there.
    pub network: Option<Joined>,
    /// What Kubernetes calls the pod.
    #[serde(default)]
    pub pod: Option<PodName>,
    /// The cgroup that its processes are in.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
}

impl StateDir {
    /// The directory of pod `sandbox` in `namespace`. Both are names without slashes.
    pub fn of(state: &Path, namespace: &str, sandbox: &str) -> Self {
        Self(state.join(namespace).join(sandbox))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory, with its parents.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        // Another pod that ends may remove the parent in between.
        for _ in 0..10 {
            match builder.create(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => return done.map_err(|error| at(&self.0, &error)),
            }
        }
        builder.create(&self.0).map_err(|error| at(&self.0, &error))
    }

    /// Writes state.json, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, state: &PodState) -> io::Result<()> {
        let new = self.file("state.json.new");
        let mut file = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(|error| at(&new, &error))?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        fs::rename(&new, self.file("state.json"))
    }

    /// Reads state.json.
    ///
    /// # Errors
    /// When it is not there or is not what was written.
    pub fn load(&self) -> io::Result<PodState> {
        Ok(serde_json::from_slice(&fs::read(self.file("state.json"))?)?)
    }

    /// Ends whatever of the pod is still alive, by state.json; `and_shim` says whether the shim too.
    /// What cannot be killed until `deadline` is logged.
    pub fn kill_processes(&self, and_shim: bool, deadline: Instant) {
        let Ok(state) = self.load() else {
            return;
        };
        let shim = state
            .shim
            .filter(|shim| and_shim && shim.pid != std::process::id());
        for (name, process) in [
            ("shim", shim),
            ("VMM", state.vmm),
            ("virtiofsd", state.virtiofsd),
        ] {
            if process.is_some_and(|process| !process.kill(deadline)) {
                log::error!("the pod's {name} does not end");
            }
        }
        if and_shim && !state.socket.as_os_str().is_empty() {
            let _ = fs::remove_file(&state.socket);
        }
    }

    /// Unmounts everything in the directory and removes it. Only what the shim makes is removed, and no directory with
    /// content is: a mount that stayed can lose no file. A directory that is not there is no error.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove(&self) -> io::Result<()> {
        let removed = self.remove_own();
        // The namespace's directory goes with its last pod, be that removed by somebody else who got no further.
        if let Some(parent) = self.0.parent() {
            let _ = fs::remove_dir(parent);
        }
        removed
    }

    fn remove_own(&self) -> io::Result<()> {
        table::unmount_below(&self.0)?;
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let share = self.file("share");
        if share.exists() {
            for container in fs::read_dir(&share)? {
                super::share::remove_container(&container?.path())?;
            }
        }
        for entry in entries {
            let path = entry?.path();
            remove_entry(&path)?;
        }
        remove_entry(&self.0)
    }
}

/// Removes a file, or an empty directory. What is not there is no error.
pub(super) fn remove_entry(path: &Path) -> io::Result<()> {
    let is_directory = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?.is_dir(),
    };
    let removed = if is_directory {
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, &error)),
        _ => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_saved_is_loaded_and_all_of_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::of(root.path(), "default", "c1");
        directory.create().unwrap();
        directory.create().unwrap();
        let mode = fs::metadata(directory.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let state = PodState {
            shim: ProcessIdentity::of(std::process::id()),
            socket: "/run/containerd/s/x".into(),
            network: Some(Joined {
                namespace: "/run/netns/x".into(),
                interfaces: vec!["eth0".into()],
            }),
            ..PodState::default()
        };
        directory.save(&state).unwrap();
        assert_eq!(directory.load().unwrap(), state);
        fs::create_dir_all(directory.file("share/c1/rootfs")).unwrap();
        fs::create_dir_all(directory.file("share/c1/mounts/0")).unwrap();
        fs::write(directory.file("share/c1/mounts/1"), "").unwrap();
        fs::create_dir(directory.file("shared")).unwrap();
        directory.remove().unwrap();
        assert!(!root.path().join("default").exists());
        directory.remove().unwrap();
        assert!(directory.load().is_err());
    }

    #[test]
    fn content_that_is_not_ours_is_never_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::of(root.path(), "default", "c1");
        let precious = directory.file("share/c1/rootfs/precious");
        fs::create_dir_all(precious.parent().unwrap()).unwrap();
        fs::write(&precious, "data").unwrap();
        assert!(directory.remove().is_err());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
    }

    #[test]
    fn a_namespace_goes_with_its_last_pod_whoever_removed_that() {
        let root = tempfile::tempdir().unwrap();
        let [first, second] = ["c1", "c2"].map(|id| StateDir::of(root.path(), "default", id));
        first.create().unwrap();
        second.create().unwrap();
        first.remove().unwrap();
        assert!(second.path().exists());
        fs::remove_dir(second.path()).unwrap();
        second.remove().unwrap();
        assert!(!root.path().join("default").exists());
    }

    #[test]
    fn processes_named_in_the_file_are_killed_and_the_socket_goes() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::of(root.path(), "default", "c1");
        directory.create().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let socket = root.path().join("socket");
        fs::write(&socket, "").unwrap();
        directory
            .save(&PodState {
                shim: ProcessIdentity::of(std::process::id()),
                socket: socket.clone(),
                vmm: ProcessIdentity::of(child.id()),
                virtiofsd: Some(ProcessIdentity {
                    pid: std::process::id(),
                    start: 1,
                }),
                ..PodState::default()
            })
            .unwrap();
        directory.kill_processes(true, Instant::now() + std::time::Duration::from_secs(10));
        assert!(!child.wait().unwrap().success());
        assert!(!socket.exists());
    }
}
