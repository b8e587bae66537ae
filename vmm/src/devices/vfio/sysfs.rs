//! What the host's kernel says of its PCI devices: `/sys/bus/pci/devices`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::HostAddress;

/// The driver that hands devices to processes.
pub const VFIO_PCI: &str = "vfio-pci";

/// The host's PCI bus, or what stands for it in a test.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Host::at("/sys")
    }
}

impl Host {
    /// One whose sysfs is at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Host { root: root.into() }
    }

    /// Where its sysfs is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A device's directory; `None` where there is no such device.
    pub fn device(&self, address: HostAddress) -> Option<Device> {
        let path = self.root.join(format!("bus/pci/devices/{address}"));
        path.is_dir().then_some(Device { address, path })
    }

    /// All devices, in the order of their addresses.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn devices(&self) -> io::Result<Vec<Device>> {
        let mut devices = list(&self.root.join("bus/pci/devices"))?
            .into_iter()
            .filter_map(|(name, path)| {
                let address = name.to_str()?.parse().ok()?;
                Some(Device { address, path })
            })
            .collect::<Vec<_>>();
        devices.sort_by_key(|device| device.address);
        Ok(devices)
    }

    /// Those in a group of the IOMMU's, in the order of their addresses.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn group(&self, number: u32) -> io::Result<Vec<Device>> {
        let path = self
            .root
            .join(format!("kernel/iommu_groups/{number}/devices"));
        let mut devices: Vec<_> = list(&path)?
            .into_iter()
            .filter_map(|(name, _)| self.device(name.to_str()?.parse().ok()?))
            .collect();
        devices.sort_by_key(|device| device.address);
        Ok(devices)
    }
}

impl Host {
    /// The number (`major:minor`) of the node of a group of VFIO's.
    pub fn group_number(&self, group: u32) -> Option<String> {
        self.number_of(&format!("vfio/{group}"))
    }

    /// The number of the node of a driver that has only one, such as `/dev/vfio/vfio`.
    pub fn misc_number(&self, name: &str) -> Option<String> {
        self.number_of(&format!("misc/{name}"))
    }

    fn number_of(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join("class").join(name).join("dev")).ok()?;
        Some(text.trim().to_owned())
    }
}

fn list(directory: &Path) -> io::Result<Vec<(OsString, PathBuf)>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| (entry.file_name(), entry.path())))
        .collect()
}

/// A device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Where it is.
    pub address: HostAddress,
    path: PathBuf,
}

impl Device {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an attribute of it says; `None` where it has no such attribute.
    pub fn attribute(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    /// An attribute that is a number in hexadecimal.
    pub fn number(&self, name: &str) -> Option<u32> {
        let text = self.attribute(name)?;
        u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    }

    /// The driver that it is bound to.
    pub fn driver(&self) -> Option<String> {
        name_of_link(&self.path.join("driver"))
    }

    /// The number of its group; `None` for a device that is behind no IOMMU.
    pub fn group(&self) -> Option<u32> {
        name_of_link(&self.path.join("iommu_group"))?.parse().ok()
    }

    /// Whether it is a bridge, which VFIO leaves to its driver wherever a group has one.
    pub fn is_bridge(&self) -> bool {
        const BRIDGE: u32 = 6;
        self.number("class")
            .is_some_and(|class| class >> 16 == BRIDGE)
    }

    /// Its own node below `/dev/vfio/devices`, where the host's kernel gives devices such.
    pub fn node(&self) -> Option<PathBuf> {
        let names = list(&self.path.join("vfio-dev")).ok()?;
        let (name, _) = names.into_iter().next()?;
        Some(Path::new("/dev/vfio/devices").join(name))
    }

    /// The number of that node (`major:minor`).
    pub fn node_number(&self) -> Option<String> {
        let name = self.node()?;
        let name = name.file_name()?.to_str()?;
        self.attribute(&format!("vfio-dev/{name}/dev"))
    }
}

fn name_of_link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}
