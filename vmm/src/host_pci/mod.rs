//! The host's PCI devices, and how they become VFIO's and their drivers' again.
//!
//! The unit is the IOMMU's group: devices in one cannot be told apart by it, so all of them go or none. [`blockers`] says what keeps a
//! device with the host, [`binding`] moves it, and [`claims`] keeps in files what is to be moved whenever the host boots.

pub mod binding;
pub mod blockers;
pub mod claims;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use crate::devices::vfio::sysfs::{Device, Host, VFIO_PCI};

use crate::config::HostAddress;

/// Where the host says what it has and what it uses. Another root than `/` is a made-up host, for tests.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
    /// Its devices.
    pub host: Host,
}

impl Default for System {
    fn default() -> Self {
        System::at("/")
    }
}

impl System {
    /// The host whose `/proc` and `/sys` are below `root`.
    pub fn at(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().to_owned();
        System {
            host: Host::at(root.join("sys")),
            root,
        }
    }

    /// A path on it.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The devices that go with this one, itself among them: those of its group that are no bridges, which drivers of VFIO's leave to the
    /// host; or itself where there is no IOMMU.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn together(&self, device: &Device) -> io::Result<Vec<Device>> {
        let Some(group) = device.group() else {
            return Ok(vec![device.clone()]);
        };
        let mut devices = self.host.group(group)?;
        devices.retain(|other| !other.is_bridge() || other.address == device.address);
        Ok(devices)
    }
}

/// Why a device is not moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device.
    #[error("the host has no PCI device {0}; `orlop pci ls` lists those that there are")]
    NotThere(HostAddress),
    /// The host needs it, or could not be protected from it.
    #[error("{address} stays the host's: {blocker}")]
    Blocked {
        /// Which device; it may be a sibling of the one that was meant.
        address: HostAddress,
        /// What is in the way.
        blocker: blockers::Blocker,
    },
    /// A VM has it.
    #[error(
        "IOMMU group {group} of {address} is in use, as by a VM: end that first, for the host's kernel would wait for it"
    )]
    InUse {
        /// Which device.
        address: HostAddress,
        /// Its group.
        group: u32,
    },
    /// The kernel has no driver for it.
    #[error(
        "the host's kernel has no driver vfio-pci: load the module vfio-pci (`modprobe vfio-pci`)"
    )]
    NoDriver,
    /// The kernel did not do it.
    #[error("{address} did not become {wanted}, but is {found}: the kernel's log may say why")]
    NotMoved {
        /// Which device.
        address: HostAddress,
        /// What was wanted.
        wanted: &'static str,
        /// What it is.
        found: crate::devices::vfio::Driver,
    },
    /// The system refused.
    #[error("cannot write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that is no claim.
    #[error("{path} is no claim: {reason}")]
    NoClaim {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another device is there now.
    #[error(
        "the claim {claim} is on a device {wanted} at {address}, where a {found} is now: the host's devices have moved; claim them anew"
    )]
    Another {
        /// Whose.
        claim: claims::Name,
        /// Where.
        address: HostAddress,
        /// What was claimed.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// Two claims on one device.
    #[error("{address} is claimed as {claim} already; `orlop pci release {claim}` ends that")]
    Claimed {
        /// Which device.
        address: HostAddress,
        /// By which claim.
        claim: claims::Name,
    },
    /// Nothing is claimed so.
    #[error("there is no claim {0}; `orlop pci ls` lists those that there are")]
    NoSuchClaim(claims::Name),
}

/// What of a device says what it is: its vendor's id and its own, as `8086:10d3`.
pub fn identity(device: &Device) -> String {
    let number = |name| device.number(name).unwrap_or(0xffff);
    format!("{:04x}:{:04x}", number("vendor"), number("device"))
}

/// What kind of device it is, in a word or two (PCI Code and ID Assignment 1.11, 1).
pub fn kind(device: &Device) -> &'static str {
    let class = device.number("class").unwrap_or(0);
    match (class >> 16, class >> 8 & 0xff) {
        (1, 8) => "NVMe",
        (1, _) => "storage",
        (2, 7) => "InfiniBand",
        (2, _) => "network",
        (3, 2) => "3D",
        (3, _) => "display",
        (4, 3) => "sound",
        (4, _) => "multimedia",
        (5, _) => "memory",
        (6, _) => "bridge",
        (7, _) => "serial",
        (8, _) => "system",
        (0xc, 3) => "USB",
        (0xc, _) => "bus",
        (0xb, _) => "processor",
        (0x12, _) => "accelerator",
        (_, _) => "other",
    }
}
