//! The node's configuration files: containerd's, the shims'.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::{
    CRUN_HANDLER, HANDLER, LARGE_HANDLER, Node, OtherHandler, RUNTIME, Sandboxer, other_handlers,
};
use crate::cache::GuestFiles;
use crate::image;

/// The configuration of Orlop's shims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrlopConfig {
    /// The VMM.
    pub vmm: PathBuf,
    /// What guests boot.
    pub guest: GuestFiles,
    /// The program that shares directories with a guest.
    pub virtiofsd: PathBuf,
    /// The shims' state directory.
    pub state: PathBuf,
    /// A guest's memory, for example `256M`.
    pub memory: String,
    /// A guest's processors.
    pub vcpus: u32,
    /// How long a guest may take to boot, in seconds. A virtual host is slow, so this is far above the default.
    pub boot_timeout: u32,
    /// Where what failed VMs have said is kept.
    pub logs: PathBuf,
    /// Further lines.
    pub more: String,
}

impl OrlopConfig {
    pub(super) fn to_toml(&self) -> String {
        format!(
            "vmm = {:?}\n{}virtiofsd = {:?}\nstate = {:?}\nmemory = {:?}\nvcpus = {}\nboot_timeout = {}\nlogs = {:?}\n{}\n",
            self.vmm,
            self.guest.to_toml(),
            self.virtiofsd,
            self.state,
            self.memory,
            self.vcpus,
            self.boot_timeout,
            self.logs,
            self.more,
        )
    }
}

pub(super) fn write(node: &Node) -> Result<()> {
    Ok(fs::write(
        node.directory().join("containerd.toml"),
        containerd(node),
    )?)
}

/// containerd's own limits on a shim are for a machine at full speed; in a virtual host everything takes ten times as long.
fn containerd(node: &Node) -> String {
    let directory = node.directory().display();
    let socket = node.socket();
    let socket = socket.display();
    let pause = image::PAUSE;
    let plugins = node.release.plugins.display();
    let large = node.large_config();
    let large = large.display();
    let others: String = other_handlers().iter().map(other).collect();
    // Only containerd 2 knows the key.
    let sandboxer = match Sandboxer::of_stories() {
        Sandboxer::Podsandbox => String::new(),
        sandboxer => format!("\n      sandboxer = {:?}", sandboxer.name()),
    };
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{socket}"
[timeouts]
  "io.containerd.timeout.shim.cleanup" = "60s"
  "io.containerd.timeout.shim.load" = "60s"
  "io.containerd.timeout.shim.shutdown" = "30s"
  "io.containerd.timeout.task.state" = "30s"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{directory}/registries"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{CRUN_HANDLER}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{CRUN_HANDLER}.options]
        BinaryName = "crun"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}]
      runtime_type = "{RUNTIME}"
      pod_annotations = ["orlop.dev/*"]{sandboxer}
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{LARGE_HANDLER}]
      runtime_type = "{RUNTIME}"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{LARGE_HANDLER}.options]
        ConfigPath = "{large}"
{others}"#
    )
}

/// The entry of a handler of somebody else's shim.
fn other(handler: &OtherHandler) -> String {
    format!(
        r#"    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{}]
      runtime_type = {:?}
"#,
        handler.name,
        handler.runtime()
    )
}
