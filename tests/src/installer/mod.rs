//! What `deploy/install.sh` does to a node, seen on directories that stand for one: natively, and nothing of this machine is touched.
//!
//! The release is packed as users get it, with programs that do nothing. The containerds are real where they are there.

mod configurations;
mod failures;
mod interrupted;
mod manifests;
mod story;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use tempfile::TempDir;

use crate::cache::Cache;
use crate::package;
use crate::stories::skip;

/// What Debian's containerd comes with.
const DEBIAN_CONFIG: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

/// A node: its root directory, the programs that come first in its PATH, and unpacked releases.
struct Node {
    directory: TempDir,
}

/// Everything below a directory: kinds, contents, and targets of links.
type Tree = BTreeMap<PathBuf, String>;

/// A pod that runs from a release.
struct Pod(Child);

impl Drop for Pod {
    fn drop(&mut self) {
        // Its process group has no other member than its own children.
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

impl Node {
    /// One with KVM, systemd, and a containerd of version 1 that takes any configuration.
    fn new() -> Self {
        let node = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let root = node.root();
        for directory in ["dev", "etc", "opt", "run/systemd/system", "usr/local/bin"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("dev/kvm"), "").unwrap();
        fs::create_dir(node.tools()).unwrap();
        let restarts = node.directory.path().join("restarts");
        node.tool(
            "systemctl",
            &format!("[ $1 = is-active ] || echo $2 >>{}", restarts.display()),
        );
        node.tool(
            "containerd",
            "[ $1 != --version ] || echo containerd example.org/containerd 1.6.20",
        );
        // Nothing here needs to outlive a loss of power.
        node.tool("sync", ":");
        node
    }

    /// The same with a real containerd and its configuration.
    fn with_containerd(containerd: &Path, config: Option<&str>) -> Self {
        let node = Self::new();
        node.tool(
            "containerd",
            &format!("exec {} \"$@\"", containerd.display()),
        );
        if let Some(config) = config {
            node.write("etc/containerd/config.toml", config);
        }
        node
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn tools(&self) -> PathBuf {
        self.directory.path().join("tools")
    }

    /// A program of the node's: a shell script of one line.
    fn tool(&self, name: &str, line: &str) {
        let path = self.tools().join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_default()
    }

    /// An unpacked release.
    fn release(&self, version: &str) -> PathBuf {
        let parts = self.directory.path().join(format!("parts-{version}"));
        fs::create_dir(&parts).unwrap();
        fs::write(parts.join("orlop"), "#!/bin/sh\necho orlop\n").unwrap();
        fs::write(parts.join("orlop-node"), "#!/bin/sh\necho orlop-node\n").unwrap();
        fs::write(parts.join("virtiofsd"), "#!/bin/sh\necho virtiofsd\n").unwrap();
        // A program, so that a process is seen to run from here.
        let shell = fs::canonicalize("/bin/sh").unwrap();
        fs::copy(shell, parts.join("containerd-shim-orlop-v2")).unwrap();
        fs::write(parts.join("vmlinux"), vec![1; 300_000]).unwrap();
        fs::write(parts.join("initramfs.cpio"), version).unwrap();
        let guest = package::Guest {
            kernel: parts.join("vmlinux"),
            image: parts.join("initramfs.cpio"),
            initramfs: parts.join("initramfs.cpio"),
            modular_initramfs: parts.join("initramfs.cpio"),
        };
        let members = package::members(&parts, &parts.join("virtiofsd"), &guest);
        let archive = parts.join("release.tar.gz");
        package::pack(version, &members, &archive).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.directory.path());
        assert!(tar.arg("-xf").arg(archive).status().unwrap().success());
        self.directory
            .path()
            .join(format!("orlop-{version}-x86_64"))
    }

    /// Runs a release's `install.sh`.
    fn install(&self, release: &Path, arguments: &[&str]) -> Output {
        self.command(release, arguments).output().unwrap()
    }

    fn command(&self, release: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(release.join("install.sh"));
        command.arg("--root").arg(self.root()).args(arguments);
        command.env("PATH", self.search());
        command
    }

    fn search(&self) -> String {
        format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.tools().display())
    }

    /// Runs it and wants it to succeed. Returns what it said.
    fn installs(&self, release: &Path, arguments: &[&str]) -> String {
        let done = self.install(release, arguments);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}{error}");
        assert_eq!(error, "", "{said}");
        said
    }

    /// Runs it and wants it to fail with one line, and to leave everything as it was. Returns the line.
    fn refuses(&self, release: &Path, arguments: &[&str]) -> String {
        let before = tree(&self.root());
        let done = self.install(release, arguments);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert_eq!(tree(&self.root()), before, "{error}");
        error
    }

    /// Which units were restarted, one a line.
    fn restarts(&self) -> String {
        fs::read_to_string(self.directory.path().join("restarts")).unwrap_or_default()
    }

    /// A process that runs from an installed release as the shim of a pod does.
    fn pod(&self, version: &str, name: &str) -> Pod {
        let shim = format!("opt/orlop/{version}/bin/containerd-shim-orlop-v2");
        let script = "while :; do sleep 1; done";
        let mut command = Command::new(self.root().join(shim));
        command.args(["-c", script, "shim", "-namespace", "k8s.io", "-id", name]);
        let spec = format!(
            r#"{{"annotations":{{"io.kubernetes.cri.sandbox-name":"{name}","io.kubernetes.cri.sandbox-namespace":"default"}}}}"#
        );
        let task = "run/containerd/io.containerd.runtime.v2.task/k8s.io";
        self.write(&format!("{task}/{name}/config.json"), &spec);
        Pod(command.process_group(0).spawn().unwrap())
    }

    /// What containerd makes of the node's configuration.
    fn dump(&self) -> String {
        let config = self.root().join("etc/containerd/config.toml");
        let mut command = Command::new(self.tools().join("containerd"));
        if config.exists() {
            command.arg("--config").arg(config).args(["config", "dump"]);
        } else {
            command.args(["config", "default"]);
        }
        let done = command.output().unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{error}");
        String::from_utf8(done.stdout).unwrap()
    }
}

fn tree(directory: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        let what = if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if metadata.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            format!("directory {mode:o}")
        } else {
            format!(
                "{mode:o} {}",
                String::from_utf8_lossy(&fs::read(&path).unwrap())
            )
        };
        // A node's pods are not what is looked at.
        if !path.starts_with(directory.join("run/containerd")) {
            tree.insert(path, what);
        }
    }
    tree
}

/// The real containerds of this machine.
fn containerds() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/usr/bin/containerd")];
    if let Some(built) = Cache::open().ok().and_then(|cache| built(&cache)) {
        found.push(built);
    } else {
        skip("no containerd 2 has been built; Debian's alone is looked at");
    }
    found.retain(|path| path.exists());
    if found.is_empty() {
        skip("there is no containerd; `cargo testbed setup` installs one");
    }
    found
}

/// The containerd 2 that the testbed has built for its cluster, if it has.
fn built(cache: &Cache) -> Option<PathBuf> {
    let sets = fs::read_dir(cache.root().join("go")).ok()?;
    let mut programs = sets.filter_map(|set| Some(set.ok()?.path().join("containerd")));
    programs.find(|program| program.exists())
}
