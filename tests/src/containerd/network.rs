//! The pods' network on a node.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{MTU, Node};

/// The bridge that pods are connected to.
pub const BRIDGE: &str = "orlop-cni0";

/// What pods are connected to, and which addresses they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A bridge that comes and goes with the node, with both protocols and an MTU that is not the usual one. Nothing outside needs to be
    /// reached, so there is no address translation.
    Own,
    /// A bridge that leads to a cluster, with the addresses in it that are the node's to give.
    Cluster {
        /// The cluster's network.
        subnet: String,
        /// The node's address in it, through which pods reach services.
        gateway: Ipv4Addr,
        /// The first and the last address of a pod.
        range: (Ipv4Addr, Ipv4Addr),
    },
}

impl Network {
    /// Makes the bridge before the first pod would, so that it is the node's and not left by that pod. `false`: it is there, and another's.
    pub(super) fn make(&self) -> Result<bool> {
        if *self != Network::Own || Path::new("/sys/class/net").join(BRIDGE).exists() {
            return Ok(false);
        }
        for line in [
            &["link", "add", BRIDGE, "type", "bridge"][..],
            &["link", "set", BRIDGE, "up"],
        ] {
            let done = Command::new("ip").args(line).output();
            let done = done.context("cannot run ip; `cargo testbed setup` installs iproute2")?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                bail!("cannot make the bridge {BRIDGE}: {}", said.trim());
            }
        }
        Ok(true)
    }

    /// Removes it.
    pub(super) fn remove(&self) {
        if *self == Network::Own {
            // Only the name of the bridge is lost if this fails.
            let _ = Command::new("ip").args(["link", "del", BRIDGE]).status();
        }
    }

    /// The configuration for the network's plugins.
    pub(super) fn plugins(&self, node: &Node) -> String {
        let state = node.directory().join("ipam");
        let plugins = match self {
            Network::Own => json!([{
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "mtu": MTU,
                "ipam": {
                    "type": "host-local",
                    "dataDir": state,
                    "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            }]),
            Network::Cluster {
                subnet,
                gateway,
                range: (first, last),
            } => json!([
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": state,
                        "ranges": [[{ "subnet": subnet, "gateway": gateway, "rangeStart": first, "rangeEnd": last }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ]),
        };
        let network: Value = json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": plugins });
        network.to_string()
    }
}
/// Where containerd keeps what the network's plugins have answered, a file for each interface of a pod.
const ANSWERS: &str = "/var/lib/cni/results";

/// The network namespace that was made for a pod.
///
/// # Errors
/// When no plugin was asked for one.
pub(super) fn namespace_of(pod: &str) -> Result<PathBuf> {
    let files = fs::read_dir(ANSWERS).with_context(|| format!("cannot read {ANSWERS}"))?;
    for file in files {
        let answer: Value = serde_json::from_slice(&fs::read(file?.path())?)?;
        if answer["containerId"] == pod
            && let Some(namespace) = answer["netns"].as_str()
        {
            return Ok(namespace.into());
        }
    }
    bail!("{ANSWERS} says nothing of the pod {pod}")
}
