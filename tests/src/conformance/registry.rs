//! A registry on this machine, from which everything comes that is pulled.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::images;
use crate::containerd::Node;

/// Where it listens.
const PORT: u16 = 5000;

/// How long it may take until it does.
const LIMIT: Duration = Duration::from_secs(60);

/// The namespace of containerd's in which images are until they are in the registry. The CRI does not look there.
const NAMESPACE: &str = "registry";

/// A registry that runs.
#[derive(Debug)]
pub(super) struct Registry(Child);

impl Registry {
    /// Starts it, fills it, and has `node` pull from it whatever registry is asked for.
    pub(super) fn start(programs: &Path, node: &Node) -> Result<Self> {
        let log = File::create(node.directory().join("registry.log"))?;
        let mut command = Command::new(programs.join("registry"));
        command
            .args(["-port", &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: the call is async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let registry = Self(command.spawn().context("cannot run the registry")?);
        let end = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            if Instant::now() > end {
                bail!("the registry does not listen; port {PORT} may be taken");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        fill(node)?;
        let directory = node.registries().join("_default");
        fs::create_dir_all(&directory)?;
        let hosts = format!(
            "server = \"http://127.0.0.1:{PORT}\"\n[host.\"http://127.0.0.1:{PORT}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(directory.join("hosts.toml"), hosts)?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pushes all images into it.
fn fill(node: &Node) -> Result<()> {
    let ctr = |arguments: &[&str]| {
        let done = node.ctr(NAMESPACE, arguments)?;
        if done.status != 0 {
            bail!("ctr {} failed: {}", arguments.join(" "), done.error());
        }
        Ok(())
    };
    let archive = node.directory().join("conformance.tar");
    fs::write(&archive, images::archive()?)?;
    ctr(&[
        "images",
        "import",
        "--no-unpack",
        &archive.to_string_lossy(),
    ])?;
    for name in images::names() {
        let (_, path) = name.split_once('/').context("a name without a registry")?;
        let remote = format!("127.0.0.1:{PORT}/{path}");
        ctr(&["images", "push", "--plain-http", &remote, name])?;
        ctr(&["images", "rm", name])?;
    }
    Ok(())
}
