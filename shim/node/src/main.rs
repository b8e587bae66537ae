//! `orlop-node`: moves a node's claimed PCI devices to VFIO when it starts, and offers them to Kubernetes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use orlop_node::dra::cluster::Cluster;
use orlop_node::dra::{Driver, cdi};
use orlop_node::offer::Offer;
use orlop_vmm::host_pci::System;
use tokio::signal::unix::{SignalKind, signal};

/// How often claims, devices and the kubelet's sockets are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Offers a node's PCI devices that were claimed by `orlop pci claim` to its kubelet, as resources pci.orlop.dev/NAME.
#[derive(Parser)]
#[command(name = "orlop-node", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    way: Option<Way>,
    /// The kubelet's directory of device plugins
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    plugins: PathBuf,
}

#[derive(Subcommand)]
enum Way {
    /// Offers them by dynamic resource allocation instead, as devices of the driver pci.orlop.dev
    Dra(Dra),
}

#[derive(Args)]
struct Dra {
    /// The node's name in the cluster
    #[arg(long, value_name = "NAME")]
    node: String,
    /// The kubelet's directory
    #[arg(long, value_name = "PATH", default_value = "/var/lib/kubelet")]
    kubelet: PathBuf,
    /// The directory with the files of the pod's service account
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    service_account: PathBuf,
    /// A directory in which containerd looks for devices of the Container Device Interface, emptied by each boot
    #[arg(long, value_name = "PATH", default_value = "/var/run/cdi")]
    cdi: PathBuf,
}

/// How the claims are offered.
enum Offered {
    Plugins(Offer),
    Driver(Box<Driver>),
}

impl Offered {
    fn new(arguments: &Arguments, system: System) -> anyhow::Result<Self> {
        let Some(Way::Dra(dra)) = &arguments.way else {
            return Ok(Offered::Plugins(Offer::new(system, &arguments.plugins)));
        };
        let cluster = Cluster::of_pod(&dra.service_account)?;
        let files = cdi::Directory::at(&dra.cdi);
        let driver = Driver::new(system, cluster, &dra.node, &dra.kubelet, files);
        Ok(Offered::Driver(Box::new(driver)))
    }

    /// Looks at everything once, and says what went wrong.
    async fn look(&mut self) -> Vec<String> {
        match self {
            Offered::Plugins(offer) => offer.look().await,
            Offered::Driver(driver) => {
                let looked = driver.look().await;
                looked
                    .err()
                    .map(|error| error.to_string())
                    .into_iter()
                    .collect()
            }
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(run(&arguments));
    // Not to wait for an answer of the API server's.
    runtime.shutdown_background();
    ended
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let system = System::default();
    // What cannot be moved is offered as unhealthy or not at all, and said once.
    for claim in system.claims()? {
        match system.apply(&claim) {
            Ok(moved) => {
                for moved in moved.iter().filter(|moved| moved.from != moved.to) {
                    eprintln!(
                        "orlop-node: {} is VFIO's, for {}",
                        moved.address, claim.name
                    );
                }
            }
            Err(error) => eprintln!("orlop-node: {}: {error}", claim.name),
        }
    }
    let mut offered = Offered::new(arguments, system)?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut interval = tokio::time::interval(INTERVAL);
    let mut said = BTreeSet::new();
    loop {
        let look = async {
            interval.tick().await;
            offered.look().await
        };
        tokio::select! {
            problems = look => {
                let problems: BTreeSet<_> = problems.into_iter().collect();
                for problem in problems.difference(&said) {
                    eprintln!("orlop-node: {problem}");
                }
                said = problems;
            }
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
        }
    }
}
