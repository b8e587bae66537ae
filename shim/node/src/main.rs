//! `orlop-node`: moves a node's claimed PCI devices to VFIO when it starts, and offers them to the kubelet.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use orlop_node::offer::Offer;
use orlop_vmm::host_pci::System;
use tokio::signal::unix::{SignalKind, signal};

/// How often claims, devices and the kubelet's socket are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Offers a node's PCI devices that were claimed by `orlop pci claim` to its kubelet, as resources pci.orlop.dev/NAME.
#[derive(Parser)]
#[command(name = "orlop-node", version)]
struct Arguments {
    /// The kubelet's directory of device plugins
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    plugins: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let system = System::default();
    // What cannot be moved is offered as unhealthy, and said once.
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
    let mut offer = Offer::new(system, &arguments.plugins);
    let mut terminated = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut interval = tokio::time::interval(INTERVAL);
    let mut said = BTreeSet::new();
    loop {
        tokio::select! {
            _ = interval.tick() => {
                let problems: BTreeSet<_> = offer.look().await.into_iter().collect();
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
