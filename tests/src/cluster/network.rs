//! The cluster's network: one bridge for the control plane, the node's card and, through the node's own bridge, the pods.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host::kvm;

/// The control plane's address.
pub const CONTROL_PLANE: &str = "10.88.0.1";
/// The node's address.
pub const WORKER: &str = "10.88.0.2";
/// The length of the prefix that they share with the pods.
pub const PREFIX: u8 = 16;
/// The pods' network.
pub const PODS: &str = "10.88.0.0/16";
/// The addresses that the node gives to pods.
pub const POD_RANGE: (&str, &str) = ("10.88.2.2", "10.88.2.254");
/// Where services have their addresses.
pub const SERVICES: &str = "10.96.0.0/16";
/// The address of the service that is the API server itself.
pub const API_SERVICE: &str = "10.96.0.1";
/// The API server's port.
pub const API_PORT: u16 = 6443;

/// The node's card where the node is no virtual host: one end of a pair.
pub(super) const WORKER_CARD: &str = "worker1";

const BRIDGE: &str = "cluster0";
/// The other end of the node's card.
const PORT: &str = "worker0";

/// Makes the bridge, and the tap of a virtual host's card.
///
/// # Errors
/// When `ip` cannot be run or refuses.
pub(super) fn make() -> Result<()> {
    let address = format!("{CONTROL_PLANE}/{PREFIX}");
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["addr", "add", &address, "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    if kvm::is_hardware() {
        return Ok(());
    }
    ip(&["tuntap", "add", PORT, "mode", "tap"])?;
    ip(&["link", "set", PORT, "master", BRIDGE, "up"])?;
    ip(&["route", "add", SERVICES, "via", WORKER])
}

/// Makes the card of a node that is this machine.
pub(super) fn make_worker_card() -> Result<()> {
    ip(&[
        "link",
        "add",
        PORT,
        "type",
        "veth",
        "peer",
        "name",
        WORKER_CARD,
    ])?;
    ip(&["link", "set", PORT, "master", BRIDGE, "up"])
}

/// QEMU's arguments for a virtual host's card.
pub(super) fn worker_card() -> [String; 4] {
    [
        "-netdev".to_owned(),
        format!("tap,id=cluster,ifname={PORT},script=no,downscript=no"),
        "-device".to_owned(),
        "virtio-net-pci,netdev=cluster,romfile=".to_owned(),
    ]
}

/// Runs `ip`.
///
/// # Errors
/// When it cannot be run or refuses.
pub(super) fn ip(line: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(line).output();
    let done = done.context("cannot run ip; `cargo testbed setup` installs iproute2")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("ip {}: {}", line.join(" "), said.trim());
    }
    Ok(())
}
