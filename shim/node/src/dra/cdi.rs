//! What a claim's containers get, as a file of the Container Device Interface: the kubelet names its devices to containerd, which puts their
//! nodes into the containers' specs. <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>
//!
//! One file for each claim, by its uid, from when it is prepared until it is not. They lie where nothing outlives a boot, for groups are
//! numbered anew then; the kubelet has its pods' claims prepared again.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::DRIVER;

/// The first version that has all that is used here.
const VERSION: &str = "0.5.0";

/// The kind of the devices, with the driver's name before it.
const CLASS: &str = "claim";

/// A device of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name in the node's pool.
    pub name: String,
    /// Its IOMMU group.
    pub group: u32,
    /// The addresses of what a container gets of the group.
    pub addresses: Vec<String>,
}

/// Which directory the files are in.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// Why a claim's file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not what the API server makes: it could be a path, or name another claim's file.
    #[error("{0:?} is no uid of a claim")]
    Uid(String),
    /// The file cannot be written or removed.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Directory {
    /// This one; it is made when the first file is.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Directory(path.into())
    }

    /// Writes a claim's file, over what it was before, and returns the devices' full names in their order.
    ///
    /// # Errors
    /// When it cannot.
    pub fn write(&self, uid: &str, devices: &[Device]) -> Result<Vec<String>, Error> {
        let path = self.path(uid)?;
        let write = || {
            std::fs::create_dir_all(&self.0)?;
            // Nobody reads half of it: what has not this ending is no file of the interface's.
            let new = path.with_extension("new");
            std::fs::write(&new, spec(uid, devices).to_string())?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|error| Error::File {
            path: path.clone(),
            error,
        })?;
        let full = |device: &Device| format!("{DRIVER}/{CLASS}={}", name(uid, device));
        Ok(devices.iter().map(full).collect())
    }

    /// Removes a claim's file, if there is one.
    ///
    /// # Errors
    /// When it cannot.
    pub fn remove(&self, uid: &str) -> Result<(), Error> {
        let path = self.path(uid)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path, error })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, uid: &str) -> Result<PathBuf, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if uid.is_empty() || uid.len() > 63 || !uid.chars().all(allowed) {
            return Err(Error::Uid(uid.into()));
        }
        Ok(self.0.join(format!("{DRIVER}-{CLASS}_{uid}.json")))
    }
}

/// What a device is called in its claim's file.
fn name(uid: &str, device: &Device) -> String {
    format!("{uid}_{}", device.name)
}

fn spec(uid: &str, devices: &[Device]) -> Value {
    let node = |name: &str| json!({ "path": format!("/dev/vfio/{name}"), "permissions": "rw" });
    let device = |device: &Device| {
        // One variable each: of two of the same name a container would keep one.
        let variable = device.name.to_ascii_uppercase().replace('-', "_");
        json!({
            "name": name(uid, device),
            "containerEdits": {
                "deviceNodes": [node("vfio"), node(&device.group.to_string())],
                "env": [format!("PCI_RESOURCE_{variable}={}", device.addresses.join(","))],
            },
        })
    };
    let devices: Vec<_> = devices.iter().map(device).collect();
    json!({ "cdiVersion": VERSION, "kind": format!("{DRIVER}/{CLASS}"), "devices": devices })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claims_file_is_there_from_when_it_is_prepared_until_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = Directory::at(directory.path().join("cdi"));
        let devices = [Device {
            name: "pci-0000-65-00-0".into(),
            group: 7,
            addresses: vec!["0000:65:00.0".into(), "0000:65:00.1".into()],
        }];
        let uid = "0b5c7c1e-8f3e-4a43-9f0e-1f9d2a5f4a11";
        for _ in 0..2 {
            let names = files.write(uid, &devices).unwrap();
            assert_eq!(
                names,
                [format!("pci.orlop.dev/claim={uid}_pci-0000-65-00-0")]
            );
        }
        let path = directory
            .path()
            .join(format!("cdi/pci.orlop.dev-claim_{uid}.json"));
        let spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let edits = &spec["devices"][0]["containerEdits"];
        assert_eq!(edits["deviceNodes"][1]["path"], "/dev/vfio/7");
        assert_eq!(
            edits["env"][0],
            "PCI_RESOURCE_PCI_0000_65_00_0=0000:65:00.0,0000:65:00.1"
        );
        for _ in 0..2 {
            files.remove(uid).unwrap();
        }
        let left = std::fs::read_dir(directory.path().join("cdi")).unwrap();
        assert_eq!(left.count(), 0);
        for uid in ["", "../x", "a/b", &"a".repeat(64)] {
            assert!(matches!(files.write(uid, &devices), Err(Error::Uid(_))));
            assert!(matches!(files.remove(uid), Err(Error::Uid(_))));
        }
    }
}
