//! A Kubernetes cluster of one's own: a real control plane, and a real node on which pods are KVM guests.
//!
//! Where this machine has no hardware virtualisation, the node is a virtual host; the control plane runs on the machine itself all the
//! same, so only the kubelet, containerd and the pods pay for the emulation. All of it is in namespaces of its own ([`namespaces`]):
//! nothing listens outside of them, and no process outlives the one that made the cluster.
//!
//! - [`network`]: the bridge that control plane, node and pods share;
//! - [`keys`]: certificates and tokens; [`plane`]: etcd, API server, controllers, scheduler;
//! - [`worker`]: the node, from inside; [`disk`]: what it keeps; [`orders`]: what is done to it;
//! - [`addons`]: what most clusters have besides;
//! - [`Cluster`]: the handle; [`kubectl`]: the way in that users have.

pub mod addons;
mod disk;
pub mod keys;
pub mod kubectl;
pub mod namespaces;
pub mod network;
pub mod orders;
pub mod plane;
mod process;
pub mod worker;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::host::outcome::shell_status;
use crate::host::{HostKernel, kvm};
use crate::progress::step;
use crate::setup::{self, debian, go};
use addons::Addons;
use orders::Order;
use process::Process;

/// Names the cluster's files to a command that runs beside it.
pub const FILES_VARIABLE: &str = "ORLOP_TESTBED_CLUSTER";

/// The node's name.
pub const NODE: &str = "worker";

/// The virtual host's memory: for a kubelet, a containerd, and some thirty small pods.
const WORKER_MEMORY_MIB: u32 = 10 * 1024;

/// How long a node may take to be ready, in a virtual host on a busy machine.
const NODE_LIMIT: Duration = Duration::from_secs(600);

/// How long it may take to end, the kubelet's tidying included.
const STOP_LIMIT: Duration = Duration::from_secs(240);

/// How often is looked what is to be done to the node.
const LOOK: Duration = Duration::from_millis(200);

/// Where the programs of a cluster are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Those of Kubernetes, etcd among them.
    pub kubernetes: PathBuf,
    /// containerd's, and the network's plugins.
    pub node: PathBuf,
}

impl Programs {
    /// Finds them in the cache, or builds them.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn get() -> Result<Self> {
        let cache = Cache::open()?;
        debian::install(debian::CLUSTER)?;
        Ok(Self {
            kubernetes: go::build(&cache, go::KUBERNETES)?,
            node: go::build(&cache, go::NODE)?,
        })
    }
}

/// The files of a cluster, which control plane, node and stories share.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Those below `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Those of the cluster that this process runs beside, if it does.
    #[must_use]
    pub fn attach() -> Option<Self> {
        std::env::var_os(FILES_VARIABLE).map(|root| Self::at(Path::new(&root)))
    }

    /// The directory of them all.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `name` uses to speak with the API server.
    #[must_use]
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.keys().join(format!("{name}.conf"))
    }

    /// The log of a process.
    #[must_use]
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("log").join(process)
    }

    fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Whoever makes this file ends the node in good order.
    fn stop(&self) -> PathBuf {
        self.root.join("stop")
    }
}

/// A cluster that runs; it ends with this value.
#[derive(Debug)]
pub struct Cluster {
    // The order is that of the ends: the node first.
    worker: Process,
    _plane: plane::ControlPlane,
    kubectl: kubectl::Kubectl,
    files: Files,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster with one node and waits until that is ready. Called inside the namespaces of [`namespaces::enter`].
    ///
    /// # Errors
    /// When something does not start; the error holds the end of its log.
    pub fn start(programs: &Programs) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("cluster-").tempdir()?;
        let files = Files::at(directory.path());
        fs::create_dir(files.root().join("log"))?;
        network::make().context("cannot make the cluster's network")?;
        keys::make(&files).context("cannot make the cluster's keys")?;
        step("starting etcd, kube-apiserver, kube-controller-manager and kube-scheduler");
        let kubectl = kubectl::Kubectl::new(programs, &files);
        let plane = plane::ControlPlane::start(programs, &files, &kubectl)?;
        step("starting the node: containerd and a kubelet where KVM is");
        disk::make(&files)?;
        let mut worker = start_worker(&files)?;
        worker.wait_until(NODE_LIMIT, || kubectl.node_is_ready().then_some(()))?;
        Ok(Self {
            worker,
            _plane: plane,
            kubectl,
            files,
            _directory: directory,
        })
    }

    /// Installs what a cluster is given of Orlop: the RuntimeClass.
    ///
    /// # Errors
    /// When it is refused.
    pub fn install(&self) -> Result<()> {
        self.kubectl
            .run(&["apply", "--kustomize", "deploy"])
            .map(drop)
    }

    /// `kubectl` as the cluster's administrator.
    #[must_use]
    pub fn kubectl(&self) -> &kubectl::Kubectl {
        &self.kubectl
    }

    /// The cluster's files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Runs `command` beside the cluster to its end, and does to the node what is ordered meanwhile.
    ///
    /// # Errors
    /// When it cannot be run, or the node ends or does not come again.
    pub fn run_beside(&mut self, mut command: Command) -> Result<ExitStatus> {
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Order::Reboot.is_given(&self.files) {
                self.reboot()?;
                Order::Reboot.is_done(&self.files)?;
            }
            thread::sleep(LOOK);
        }
    }

    /// Has the node's power fail, and starts it again.
    fn reboot(&mut self) -> Result<()> {
        self.worker.end();
        let kubectl = &self.kubectl;
        let booted = kubectl.node_boot()?;
        self.worker = start_worker(&self.files)?;
        self.worker.wait_until(NODE_LIMIT, || {
            let again = kubectl.node_boot().is_ok_and(|boot| boot != booted);
            (again && kubectl.node_is_ready()).then_some(())
        })
    }

    /// Ends the node in good order and returns what it found left of pods that are gone, a line each.
    ///
    /// # Errors
    /// When the node does not end, or ends badly.
    pub fn stop(mut self) -> Result<Vec<String>> {
        fs::write(self.files.stop(), "")?;
        self.worker.wait_for_end(STOP_LIMIT)?;
        let left = fs::read_to_string(worker::left(&self.files))
            .context("the node did not look at what pods left")?;
        Ok(left.lines().map(str::to_owned).collect())
    }
}

/// Sets this machine up and runs `command` beside a cluster of its own: `kubectl` and `crictl` are in its PATH, and `KUBECONFIG` says where
/// the cluster is. Returns its status.
///
/// # Errors
/// When something cannot be installed, built or started, or something is left of pods at the end.
pub fn run(command: &[OsString]) -> Result<ExitCode> {
    setup::everything()?;
    Programs::get()?;
    addons::Programs::get()?;
    let mut arguments = vec![OsString::from("in-cluster"), "--".into()];
    arguments.extend(command.iter().cloned());
    namespaces::enter(&arguments)
}

/// The same, called inside the namespaces.
///
/// # Errors
/// See [`run`].
pub fn run_inside(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command to run")?;
    let programs = Programs::get()?;
    let mut cluster = Cluster::start(&programs)?;
    cluster.install()?;
    let _addons = Addons::start(cluster.files(), cluster.kubectl())?;
    let mut search = OsString::from(&programs.kubernetes);
    for more in [
        programs.node.into_os_string(),
        std::env::var_os("PATH").unwrap_or_default(),
    ] {
        search.push(":");
        search.push(more);
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", search)
        .env("KUBECONFIG", cluster.files().kubeconfig("admin"))
        .env(FILES_VARIABLE, cluster.files().root());
    let status = cluster.run_beside(command)?;
    let left = cluster.stop()?;
    if !left.is_empty() {
        bail!("pods left:\n  {}", left.join("\n  "));
    }
    Ok(ExitCode::from(shell_status(status)))
}

/// Starts the node: this program again, where KVM is.
fn start_worker(files: &Files) -> Result<Process> {
    let this = crate::own::program()?;
    let mut command = Command::new(&this);
    command.args(["host", "--memory", &WORKER_MEMORY_MIB.to_string()]);
    // A kubelet needs cpusets, which a virtual host has with a newer kernel only.
    command.args(["--host-kernel", HostKernel::Newer.name()]);
    if !kvm::is_hardware() {
        // No machine's own devices are given to pods of tests.
        command.arg("--passthrough");
    }
    let devices = network::worker_card()
        .into_iter()
        .chain(disk::device(files));
    for argument in devices {
        command.arg(format!("--qemu={argument}"));
    }
    command
        .arg("--")
        .arg(&this)
        .args(["worker", "--files"])
        .arg(files.root());
    Process::start("worker", command, files)
}
