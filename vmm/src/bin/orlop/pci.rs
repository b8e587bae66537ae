//! `orlop pci`: which of the host's PCI devices there are, and which are to be guests'.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use orlop_vmm::config::HostAddress;
use orlop_vmm::host_pci::binding::Moved;
use orlop_vmm::host_pci::claims::Name;
use orlop_vmm::host_pci::{self, Device, System, VFIO_PCI, blockers};
use serde::Serialize;

use crate::output::{self, Output};

/// What `orlop pci --help` ends with.
pub const AFTER_HELP: &str = "\
A device is a guest's when its driver is vfio-pci. The unit is the IOMMU's group: all devices of one go together.

Examples:
  orlop pci ls
  orlop pci bind 0000:65:00.0 && orlop run --device 0000:65:00.0 --kernel vmlinux
  orlop pci claim gpu 0000:65:00.0    # also after the host's next boot, if `orlop pci apply` runs then";

/// The words behind `orlop pci`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List the host's PCI devices
    Ls {
        /// How to print them
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// Bridges as well
        #[arg(long, short)]
        all: bool,
    },
    /// Say what keeps devices from being guests', all of them if none is named
    Check {
        /// Where they are
        #[arg(value_name = "ADDRESS")]
        addresses: Vec<HostAddress>,
    },
    /// Give devices, and all of their groups, to VFIO
    Bind {
        /// Where they are
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<HostAddress>,
    },
    /// Give devices, and all of their groups, back to their drivers
    Unbind {
        /// Where they are
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<HostAddress>,
    },
    /// Give devices to VFIO under a name, now and whenever the claims are applied
    Claim {
        /// The name
        #[arg(value_name = "NAME")]
        name: Name,
        /// Where they are
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<HostAddress>,
    },
    /// End a claim; its devices stay VFIO's until `orlop pci unbind`
    Release {
        /// Its name
        #[arg(value_name = "NAME")]
        name: Name,
    },
    /// Give all claimed devices to VFIO, as when the host has booted
    Apply,
}

/// A device, for people and programs.
#[derive(Debug, Serialize)]
struct Row {
    address: String,
    id: String,
    kind: &'static str,
    driver: Option<String>,
    iommu_group: Option<u32>,
    siblings: Vec<String>,
    /// -1 where the host has no such nodes.
    numa_node: i32,
    resource: Option<String>,
    blocked_by: Vec<String>,
}

/// Does what `orlop pci` is told to.
///
/// # Errors
/// When a device cannot be moved, or nobody reads what is printed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let system = System::default();
    match &arguments.what {
        What::Ls { output, all } => list(&system, *output, *all),
        What::Check { addresses } => check(&system, addresses),
        What::Bind { addresses } => each(addresses, |address| Ok(tell(&system.bind(address)?)?)),
        What::Unbind { addresses } => {
            each(addresses, |address| Ok(tell(&system.unbind(address)?)?))
        }
        What::Claim { name, addresses } => {
            tell(&system.claim(name, addresses)?)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Release { name } => {
            system.release(name)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Apply => each(&system.claims()?, |claim| Ok(tell(&system.apply(&claim)?)?)),
    }
}

/// Does `act` to each. What fails for one is said, and the others have their turn.
fn each<T: Clone>(things: &[T], act: impl Fn(T) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let mut exit = ExitCode::SUCCESS;
    for thing in things {
        if let Err(error) = act(thing.clone()) {
            eprintln!("orlop: {error:#}");
            exit = ExitCode::FAILURE;
        }
    }
    Ok(exit)
}

/// Says what has moved, and what did not need to.
fn tell(moved: &[Moved]) -> std::io::Result<()> {
    let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".into());
    let mut text = String::new();
    for Moved { address, from, to } in moved {
        // Writing to a string does not fail.
        let _ = if from == to {
            writeln!(text, "{address}: {} already", name(to))
        } else {
            writeln!(text, "{address}: {} -> {}", name(from), name(to))
        };
    }
    output::print(&text)
}

fn rows(system: &System, all: bool) -> anyhow::Result<Vec<Row>> {
    let mut resources = BTreeMap::new();
    for claim in system.claims()? {
        let resource = claim.name.resource();
        resources.extend(
            claim
                .devices
                .into_iter()
                .map(|d| (d.address, resource.clone())),
        );
    }
    let devices = system
        .host
        .devices()
        .context("the host says nothing of its PCI devices")?;
    let shown = devices.iter().filter(|device| all || !device.is_bridge());
    let row = |device: &Device| Row {
        address: device.address.to_string(),
        id: host_pci::identity(device),
        kind: host_pci::kind(device),
        driver: device.driver(),
        iommu_group: device.group(),
        siblings: siblings(system, device),
        numa_node: device
            .attribute("numa_node")
            .and_then(|node| node.parse().ok())
            .unwrap_or(-1),
        resource: resources.get(&device.address).cloned(),
        blocked_by: blockers::of(system, device)
            .iter()
            .map(blockers::Blocker::short)
            .collect(),
    };
    Ok(shown.map(row).collect())
}

fn siblings(system: &System, device: &Device) -> Vec<String> {
    let together = system.together(device).unwrap_or_default();
    let others = together
        .iter()
        .filter(|other| other.address != device.address);
    others.map(|other| other.address.to_string()).collect()
}

fn list(system: &System, how: Output, all: bool) -> anyhow::Result<ExitCode> {
    let rows = rows(system, all)?;
    match how {
        Output::Json => output::print(&(serde_json::to_string_pretty(&rows)? + "\n"))?,
        Output::Text => output::print(&table(&rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> String {
    const HEAD: [&str; 9] = [
        "ADDRESS",
        "ID",
        "KIND",
        "DRIVER",
        "GROUP",
        "SIBLINGS",
        "NUMA",
        "RESOURCE",
        "BLOCKED BY",
    ];
    let or_none = |text: String| if text.is_empty() { "-".into() } else { text };
    let cells = rows.iter().map(|row| {
        [
            row.address.clone(),
            row.id.clone(),
            row.kind.into(),
            or_none(row.driver.clone().unwrap_or_default()),
            or_none(row.iommu_group.map(|g| g.to_string()).unwrap_or_default()),
            or_none(row.siblings.join(",")),
            if row.numa_node < 0 {
                "-".into()
            } else {
                row.numa_node.to_string()
            },
            or_none(row.resource.clone().unwrap_or_default()),
            or_none(row.blocked_by.join("; ")),
        ]
    });
    output::columns(std::iter::once(HEAD.map(String::from)).chain(cells))
}

/// Says of each device what is in the way, and what it lacks; the status tells whether there is anything.
fn check(system: &System, addresses: &[HostAddress]) -> anyhow::Result<ExitCode> {
    let devices = if addresses.is_empty() {
        let mut devices = system.host.devices()?;
        devices.retain(|device| !device.is_bridge());
        devices
    } else {
        let found = addresses.iter().map(|address| system.device(*address));
        found.collect::<Result<_, _>>()?
    };
    let mut text = String::new();
    let mut is_ready = true;
    for device in &devices {
        let mut problems = Vec::new();
        for member in system.together(device)? {
            let whose = if member.address == device.address {
                String::new()
            } else {
                format!("{} in its group: ", member.address)
            };
            let found = blockers::of(system, &member);
            problems.extend(found.iter().map(|blocker| format!("{whose}{blocker}")));
            let driver = member.driver();
            if found.is_empty() && driver.as_deref() != Some(VFIO_PCI) {
                let now = driver.map_or("no driver's".into(), |driver| format!("{driver}'s"));
                problems.push(format!(
                    "{whose}it is {now}; `orlop pci bind {}` gives it to VFIO",
                    device.address
                ));
            }
        }
        let resets = device.path().join("reset").exists();
        // Writing to a string does not fail.
        let _ = match problems.as_slice() {
            [] if resets => writeln!(text, "{}: ready", device.address),
            [] => writeln!(
                text,
                "{}: ready, but it cannot be reset by itself: what a guest leaves in it, the next one finds",
                device.address
            ),
            problems => {
                is_ready = false;
                problems
                    .iter()
                    .try_for_each(|problem| writeln!(text, "{}: {problem}", device.address))
            }
        };
    }
    output::print(&text)?;
    Ok(if is_ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
