//! The node: what runs where KVM is, a virtual host or this machine.
//!
//! It ends when the file [`Files::stop`] is there, and says then what its pods have left.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::addons::DOMAIN;
use super::disk;
use super::network::{self, CONTROL_PLANE, POD_RANGE, PODS, PREFIX, WORKER, ip};
use super::orders::Order;
use super::process::Process;
use super::{Files, NODE, Programs};
use crate::cache::Cache;
use crate::containerd::network::BRIDGE;
use crate::containerd::{Network, Node, OrlopConfig, Release};
use crate::host;
use crate::leaks::{Holdings, Thing};
use crate::progress::step;

/// What the kubelet keeps on the node's disk.
const PLACES: &[&str] = &["/var/lib/kubelet", "/var/log/pods", "/var/log/containers"];

/// What a virtual host keeps besides: which of its devices are claimed. Elsewhere that is the machine's own.
const CLAIMS: &str = "/etc/orlop";

/// How long a node may run; whoever wants one for longer has a real one.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long a guest may take to boot when many do at once on a node that is emulated, in seconds.
const BOOT_SECONDS: u32 = 1800;

/// How long the kubelet may take to tidy up.
const TIDY_LIMIT: Duration = Duration::from_secs(150);

/// Where the file is that says what was left.
#[must_use]
pub(super) fn left(files: &Files) -> PathBuf {
    files.root().join("left")
}

/// Runs the node of the cluster with these `files` until it is to stop.
///
/// # Errors
/// When something does not start, or has ended before it should.
pub fn run(files: &Files) -> Result<ExitCode> {
    // Whoever started the cluster has built them.
    let programs = &Programs::get()?;
    nix::unistd::sethostname(NODE)?;
    let disk = disk::open()?;
    for place in PLACES {
        disk::keep(&disk, place)?;
    }
    if host::is_virtual() {
        disk::keep(&disk, CLAIMS)?;
        load(&["vfio_iommu_type1", "vfio_pci"])?;
    }
    let directory = disk.join("node");
    for place in ["state", "orlop"] {
        disk::forget(&directory.join(place))?;
    }
    join_network().context("cannot join the cluster's network")?;
    step("starting containerd");
    let release = Release::at(&programs.node);
    let (node, mut daemon) = Node::start_with(&directory, release, pod_network()?)?;
    let config = OrlopConfig {
        boot_timeout: BOOT_SECONDS,
        ..node.orlop_config()?
    };
    node.write_orlop_config(&config)?;
    // Our own kernel has drivers for a VM's own devices only; pods that are given others have Debian's.
    let cache = Cache::open()?;
    let config = OrlopConfig {
        guest: cache.debian_boots(),
        ..config
    };
    node.write_orlop_config_to(&node.large_config(), &config)?;
    step("starting kubelet and kube-proxy");
    let start_kubelet = || Process::start("kubelet", kubelet(programs, files, &node)?, files);
    let mut kubelet = start_kubelet()?;
    let start_proxy = || Process::start("kube-proxy", proxy(programs, files), files);
    let mut proxy = start_proxy()?;
    let places = [node.orlop_state()];
    let before = Holdings::now(&places);
    loop {
        let next = kubelet.wait_until(LIFE, || {
            // It ends by itself when it learns the node's address, which it does not know before the kubelet has told.
            proxy
                .has_ended()
                .then_some(Next::Proxy)
                .or_else(|| next(files))
        })?;
        let order = match next {
            Next::End => break,
            Next::Proxy => {
                proxy = start_proxy()?;
                continue;
            }
            Next::Order(order) => order,
        };
        match order {
            Order::RestartKubelet => {
                kubelet.end();
                kubelet = start_kubelet()?;
            }
            Order::RestartContainerd => daemon.restart(&node)?,
            // A node does not do that itself.
            Order::Reboot => {}
        }
        order.is_done(files)?;
    }
    let left = left_of_pods(&before, &places);
    fs::write(self::left(files), left.join("\n"))?;
    // The logs are outside; containerd's is in here.
    fs::copy(node.log(), files.log("containerd"))?;
    Ok(ExitCode::SUCCESS)
}

/// What the node is to do next.
enum Next {
    End,
    Order(Order),
    /// Start kube-proxy again.
    Proxy,
}

fn next(files: &Files) -> Option<Next> {
    if files.stop().exists() {
        return Some(Next::End);
    }
    let mut orders = Order::OF_NODE.into_iter();
    orders.find(|order| order.is_given(files)).map(Next::Order)
}

/// What is left of pods when the kubelet has had its time: it ends a pod that the cluster has forgotten already, and tidies up now and then.
fn left_of_pods(before: &Holdings, places: &[PathBuf]) -> Vec<String> {
    let end = Instant::now() + TIDY_LIMIT;
    loop {
        let left = Holdings::now(places).beyond(before);
        let left: Vec<_> = left.iter().filter(|thing| is_of_pods(thing)).collect();
        if left.is_empty() || Instant::now() > end {
            return left.iter().map(ToString::to_string).collect();
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// What pods bring and must take along. The kubelet's own sockets, mounts and cgroups for classes of pods are none of it.
fn is_of_pods(thing: &Thing) -> bool {
    match thing {
        Thing::Process(_, command) => ["orlop", "virtiofsd", "containerd-shim"]
            .iter()
            .any(|name| command.contains(name)),
        Thing::Mount(place) => place.contains("/io.containerd.") || place.contains("/orlop"),
        Thing::Socket(name) => name.contains("orlop") || name.contains("/containerd/s/"),
        Thing::Cgroup(path) => path.to_string_lossy().contains("/pod"),
        Thing::File(_) | Thing::NetworkNamespace(_) | Thing::Interface(_) => true,
    }
}

/// Makes a bridge of the pods' that leads to the cluster's.
fn join_network() -> Result<()> {
    load(&["br_netfilter", "nf_conntrack", "virtio_net", "loop"])?;
    if !host::is_virtual() {
        network::make_worker_card()?;
    }
    let card = wait_for_card().context("the node has no network card")?;
    let address = format!("{WORKER}/{PREFIX}");
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["link", "set", &card, "master", BRIDGE, "up"])?;
    ip(&["addr", "add", &address, "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    // A packet for a service is seen by the rules although it only crosses the bridge.
    fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
        .context("no br_netfilter in this kernel")
}

/// Loads kernel modules, with what they need.
pub(super) fn load(modules: &[&str]) -> Result<()> {
    let done = Command::new("modprobe").arg("--all").args(modules).output();
    let done = done.context("cannot run modprobe; `cargo testbed setup` installs kmod")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("modprobe {}: {}", modules.join(" "), said.trim());
    }
    Ok(())
}

/// The interface that leads to the cluster. A driver that was just loaded takes a moment to make it.
fn wait_for_card() -> Option<String> {
    for _ in 0..100 {
        if let Some(card) = card() {
            return Some(card);
        }
        thread::sleep(Duration::from_millis(50));
    }
    None
}

fn card() -> Option<String> {
    let interfaces = fs::read_dir("/sys/class/net").ok()?.flatten();
    let mut names = interfaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    if host::is_virtual() {
        names.find(|name| name.starts_with('e'))
    } else {
        names.find(|name| name == network::WORKER_CARD)
    }
}

fn pod_network() -> Result<Network> {
    let address = |text: &str| text.parse::<Ipv4Addr>();
    Ok(Network::Cluster {
        subnet: PODS.to_owned(),
        gateway: address(WORKER)?,
        range: (address(POD_RANGE.0)?, address(POD_RANGE.1)?),
    })
}

fn kubelet(programs: &Programs, files: &Files, node: &Node) -> Result<Command> {
    let resolver = node.directory().join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n")?;
    // Time limits are stretched for a node that is emulated.
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": WORKER,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [CONTROL_PLANE],
        "clusterDomain": DOMAIN,
        "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": { "memory.available": "64Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "failSwapOn": false,
        "healthzBindAddress": "127.0.0.1",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "10s",
        "resolvConf": resolver,
        "runtimeRequestTimeout": "35m",
        "serializeImagePulls": false,
    });
    let file = node.directory().join("kubelet.json");
    fs::write(&file, config.to_string())?;
    let mut command = Command::new(programs.kubernetes.join("kubelet"));
    command
        .arg("--config")
        .arg(file)
        .arg("--kubeconfig")
        .arg(files.kubeconfig("kubelet"))
        .arg("--cert-dir")
        .arg(node.directory().join("kubelet-keys"))
        .args(["--hostname-override", NODE, "--node-ip", WORKER])
        // What the installation gives a node that can run VMs.
        .args(["--node-labels", "orlop.dev/runtime=true"]);
    Ok(command)
}

fn proxy(programs: &Programs, files: &Files) -> Command {
    let mut command = Command::new(programs.kubernetes.join("kube-proxy"));
    command
        .arg("--kubeconfig")
        .arg(files.kubeconfig("proxy"))
        .args(["--hostname-override", NODE, "--proxy-mode", "iptables"])
        .args(["--cluster-cidr", PODS, "--conntrack-max-per-core", "0"])
        // The control plane is not a node: what it asks of a service must come back the same way.
        .arg("--masquerade-all");
    command
}
