//! A containerd of one's own: Debian's or another, with its own configuration, state and socket below one directory, and Orlop as a runtime.
//!
//! [`Node`] is the handle. Whoever makes one with [`Node::start`] owns the [`Daemon`]; the stories attach to that daemon with
//! [`Node::attach`], so that all of them share it. [`ctr`] and [`cri`] are the two ways in that users have.

mod config;
pub mod cri;
pub mod ctr;
mod daemon;
pub mod exec;
pub mod forward;
pub mod network;
mod release;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::image;
use crate::setup::build;
pub use config::OrlopConfig;
pub use daemon::Daemon;
pub use network::Network;
pub(crate) use release::{RELEASE_VARIABLE, SANDBOXER_VARIABLE};
pub use release::{Release, Sandboxer, Version};

/// The runtime of Orlop as `ctr run --runtime` names it.
pub const RUNTIME: &str = "io.containerd.orlop.v2";
/// The handler of Orlop as a RuntimeClass names it.
pub const HANDLER: &str = "orlop";

/// The handler of crun, for which Debian's program is run where there is one.
pub const CRUN_HANDLER: &str = "crun";

/// Another handler of Orlop's, whose configuration is [`Node::large_config`].
pub const LARGE_HANDLER: &str = "orlop-large";

/// Shims of others that are behind handlers of their own where a variable names their programs: the variable, the handler, the version of what the shim does.
const OTHERS: [(&str, &str, &str); 2] =
    [("KATA_SHIM", "kata", "v2"), ("RUNSC_SHIM", "runsc", "v1")];

/// A handler of somebody else's shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherHandler {
    /// What it is called.
    pub name: &'static str,
    version: &'static str,
    /// The shim.
    pub program: PathBuf,
}

impl OtherHandler {
    /// The shim's type for containerd.
    fn runtime(&self) -> String {
        format!("io.containerd.{}.{}", self.name, self.version)
    }

    /// Puts a link to the shim where containerd looks for one of its type, by its name: only later releases take a path.
    fn link(&self, directory: &Path) -> Result<()> {
        let link = directory.join(format!("containerd-shim-{}-{}", self.name, self.version));
        let program = std::path::absolute(&self.program)?;
        std::os::unix::fs::symlink(program, &link)
            .with_context(|| format!("cannot link {}", link.display()))
    }
}

/// The handlers of shims that are named in the environment.
#[must_use]
pub fn other_handlers() -> Vec<OtherHandler> {
    let named = OTHERS.iter().filter_map(|(variable, name, version)| {
        Some(OtherHandler {
            name,
            version,
            program: std::env::var_os(variable)?.into(),
        })
    });
    named.collect()
}

/// The MTU of the pods' network, in bytes.
pub const MTU: u32 = 1400;

/// What is below a node's directory. Those inside `root` and `state` containerd makes with its first container, and keeps:
/// made here, they are not taken for something that this container left.
const DIRECTORIES: &[&str] = &[
    "cni",
    "logs",
    "orlop",
    "registries",
    "root/io.containerd.grpc.v1.cri/containers",
    "root/io.containerd.grpc.v1.cri/sandboxes",
    "root/io.containerd.runtime.v2.task/default",
    "root/io.containerd.runtime.v2.task/k8s.io",
    "state/io.containerd.grpc.v1.cri/containers",
    "state/io.containerd.grpc.v1.cri/sandboxes",
    "state/io.containerd.runtime.v2.task/default",
    "state/io.containerd.runtime.v2.task/k8s.io",
];

/// Names the node's directory to the stories.
pub const DIRECTORY_VARIABLE: &str = "ORLOP_TESTBED_NODE";

const START_LIMIT: Duration = Duration::from_secs(60);

/// A machine with a containerd that knows Orlop.
#[derive(Debug, Clone)]
pub struct Node {
    directory: PathBuf,
    release: Release,
}

impl Node {
    /// Starts the containerd of the stories with a network of its own. Its files are below `directory`, which must be on a file system that
    /// overlayfs can write to.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub fn start(directory: &Path) -> Result<(Self, Daemon)> {
        Self::start_with(directory, Release::of_stories(), Network::Own)
    }

    /// The same with the containerd and the network that are asked for.
    ///
    /// # Errors
    /// See [`Node::start`].
    pub fn start_with(
        directory: &Path,
        release: Release,
        network: Network,
    ) -> Result<(Self, Daemon)> {
        let node = Self {
            directory: directory.to_owned(),
            release,
        };
        for part in DIRECTORIES {
            fs::create_dir_all(directory.join(part))?;
        }
        // containerd 1.x puts the shims' sockets there, whatever its configuration says.
        fs::create_dir_all("/run/containerd/s")?;
        fs::create_dir_all(node.other_shims())?;
        for handler in other_handlers() {
            handler.link(&node.other_shims())?;
        }
        config::write(&node)?;
        let is_made = network.make()?;
        fs::write(node.network_file(), network.plugins(&node))?;
        node.write_orlop_config(&node.orlop_config()?)?;
        let daemon = Daemon::start(&node, is_made.then_some(network))?;
        let archive = directory.join("images.tar");
        fs::write(&archive, image::archive()?)?;
        for namespace in ["default", "k8s.io"] {
            let done = node.ctr(namespace, &["images", "import", &archive.to_string_lossy()])?;
            if done.status != 0 {
                bail!("cannot import the images: {}", done.error());
            }
        }
        Ok((node, daemon))
    }

    /// The node that the testbed started for the stories, if it did.
    #[must_use]
    pub fn attach() -> Option<Self> {
        let directory = PathBuf::from(env::var_os(DIRECTORY_VARIABLE)?);
        let release = Release::of_stories();
        Some(Self { directory, release })
    }

    /// The same node with another containerd, for [`Daemon::restart`] to have that one go on with what the old one has left.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn with(&self, release: Release) -> Result<Self> {
        let node = Self {
            directory: self.directory.clone(),
            release,
        };
        config::write(&node)?;
        Ok(node)
    }

    /// The directory with everything that belongs to the node.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// containerd's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// Where pods' logs go.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// containerd's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    /// The configuration of the pods' network.
    #[must_use]
    pub fn network_file(&self) -> PathBuf {
        self.directory.join("cni/10-pods.conflist")
    }

    /// The directory with links to the shims of others.
    fn other_shims(&self) -> PathBuf {
        self.directory.join("shims")
    }

    /// The directory with what is to be known of registries, each in a directory of its name.
    #[must_use]
    pub fn registries(&self) -> PathBuf {
        self.directory.join("registries")
    }

    /// The state directory of Orlop's shims.
    #[must_use]
    pub fn orlop_state(&self) -> PathBuf {
        self.directory.join("orlop")
    }

    /// containerd's process id.
    ///
    /// # Errors
    /// When the file that says so is missing.
    pub fn process(&self) -> Result<u32> {
        let text = fs::read_to_string(self.directory.join("containerd.pid"))?;
        Ok(text.trim().parse()?)
    }

    /// The shims' configuration as the node starts with it.
    ///
    /// # Errors
    /// When there is no cache.
    pub fn orlop_config(&self) -> Result<OrlopConfig> {
        let cache = Cache::open()?;
        Ok(OrlopConfig {
            vmm: build::programs_directory().join("orlop"),
            guest: cache.pod_boots(),
            virtiofsd: cache.virtiofsd(),
            state: self.orlop_state(),
            memory: "256M".into(),
            vcpus: 1,
            boot_timeout: 300,
            logs: self.directory.join("failed"),
            more: String::new(),
        })
    }

    /// Writes the configuration that the next shim reads.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_orlop_config(&self, config: &OrlopConfig) -> Result<()> {
        self.write_orlop_config_to(&self.orlop_config_file(), config)
    }

    /// Writes a configuration to `file`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_orlop_config_to(&self, file: &Path, config: &OrlopConfig) -> Result<()> {
        Ok(fs::write(file, config.to_toml())?)
    }

    /// The shims' configuration file.
    #[must_use]
    pub fn orlop_config_file(&self) -> PathBuf {
        self.directory.join("orlop.toml")
    }

    /// The configuration file of [`LARGE_HANDLER`], for whoever uses it to write.
    #[must_use]
    pub fn large_config(&self) -> PathBuf {
        self.directory.join("orlop-large.toml")
    }

    /// Waits until containerd answers.
    ///
    /// # Errors
    /// When it does not in time, or `has_ended` says so.
    pub fn wait_until_ready(&self, has_ended: impl Fn() -> bool) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        loop {
            if cri::Cri::connect(self).is_ok_and(|cri| cri.is_ready()) {
                return Ok(());
            }
            if has_ended() {
                bail!(
                    "containerd ended at once; its log says:\n{}",
                    self.log_tail()
                );
            }
            if Instant::now() > end {
                let seconds = START_LIMIT.as_secs();
                bail!(
                    "containerd is not ready after {seconds} s; its log says:\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The end of containerd's log, for people.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}
