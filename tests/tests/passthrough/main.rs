//! Devices of the host's that a guest is given: they do DMA through an IOMMU there, and are the host's again afterwards.

mod binding;
mod comings;
#[path = "../common/mod.rs"]
mod common;
mod endings;
#[path = "../guest/mod.rs"]
mod guest;
mod hostile;
mod lives;
mod pci;
mod pods;
mod queues;
mod refusals;

use common::Stage;
use guest::vm::Vm;
use guest::{Guest, Kernel};
use orlop_testbed::host::devices::{self, DISK};
use orlop_testbed::stories;

/// The kernel for guests with disks: it has their driver built in.
const FOR_DISKS: Kernel = Kernel::Vmlinux;

/// The stage of a story, whose devices have drivers to have and have none; without devices to give away the story is skipped.
fn stage() -> Option<Stage> {
    if pci::is_there(DISK) {
        // A driver takes what nobody has when it is loaded.
        ["nvme", "e1000e", "snd-hda-intel", "xhci-pci"]
            .iter()
            .for_each(|driver| pci::load(driver));
        devices::ALL
            .iter()
            .for_each(|address| pci::release(address));
    }
    let stage = common::stage()?;
    if !pci::is_there(DISK) {
        stories::skip(
            "this host has no devices to give away; `cargo testbed test passthrough` starts one that has",
        );
        return None;
    }
    Some(stage)
}

/// A guest that runs a script, with devices.
fn start(kernel: Kernel, script: &str, arguments: &[&str]) -> Vm {
    let drivers: &[&str] = match kernel {
        Kernel::Full => &["nvme", "e1000e"],
        _ => &[],
    };
    Vm::start(Guest::with_drivers(kernel, script, &[], drivers), arguments)
}
