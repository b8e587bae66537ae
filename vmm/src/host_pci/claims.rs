//! Claims: devices that are to be VFIO's whenever the host boots, under a name. Each is a file of its own in `/etc/orlop/pci.d`.
//!
//! ```toml
//! # gpu.toml
//! [[device]]
//! address = "0000:65:00.0"
//! identity = "10de:2330"
//! ```
//!
//! The identity is what was there when it was claimed: addresses change when cards are put elsewhere, and then nothing is moved.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::binding::Moved;
use super::{Error, System, identity};
use crate::config::HostAddress;

/// Where claims are kept.
pub const DIRECTORY: &str = "etc/orlop/pci.d";

/// A claim's name: 1 to 63 characters of `[a-z0-9-]`, as a part of a name of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The resource that devices of this claim are to Kubernetes.
    pub fn resource(&self) -> String {
        format!("pci.orlop.dev/{}", self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// That is no name of a claim.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no name of a claim: it has 1 to 63 small letters, digits or '-', and begins and ends with a letter or a digit"
)]
pub struct NoName(String);

impl FromStr for Name {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if (1..=63).contains(&text.len()) && edges && text.chars().all(allowed) {
            return Ok(Name(text.into()));
        }
        Err(NoName(text.into()))
    }
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: Name,
    /// What it is on.
    pub devices: Vec<Claimed>,
}

/// A device that is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Where it is.
    pub address: HostAddress,
    /// What was there.
    pub identity: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    address: String,
    identity: String,
}

impl System {
    /// All claims, in the order of their names.
    ///
    /// # Errors
    /// When one cannot be read, or is none.
    pub fn claims(&self) -> Result<Vec<Claim>, Error> {
        let directory = self.path(DIRECTORY);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                let path = directory;
                return Err(Error::Read { path, source });
            }
        };
        let mut claims = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.and_then(|name| name.strip_suffix(".toml")) {
                claims.push(read(&path, name)?);
            }
        }
        claims.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(claims)
    }

    /// Claims devices under a name, and moves them and all of their groups to VFIO. Those that are claimed under it already stay.
    ///
    /// # Errors
    /// When one of them is claimed under another name, or the host needs one. Then nothing is claimed.
    pub fn claim(&self, name: &Name, addresses: &[HostAddress]) -> Result<Vec<Moved>, Error> {
        let claims = self.claims()?;
        let known = claims.iter().find(|claim| claim.name == *name);
        let mut claim = known.cloned().unwrap_or(Claim {
            name: name.clone(),
            devices: Vec::new(),
        });
        for address in addresses {
            let device = self.device(*address)?;
            let others = claims.iter().filter(|other| other.name != *name);
            for other in others {
                if other
                    .devices
                    .iter()
                    .any(|device| device.address == *address)
                {
                    return Err(Error::Claimed {
                        address: *address,
                        claim: other.name.clone(),
                    });
                }
            }
            claim.devices.retain(|device| device.address != *address);
            claim.devices.push(Claimed {
                address: *address,
                identity: identity(&device),
            });
        }
        claim.devices.sort_by_key(|device| device.address);
        let mut moved = Vec::new();
        for address in addresses {
            moved.extend(self.bind(*address)?);
        }
        self.keep(&claim)?;
        Ok(moved)
    }

    /// Ends a claim. Its devices stay VFIO's until they are given back.
    ///
    /// # Errors
    /// When there is none, or its file cannot be removed.
    pub fn release(&self, name: &Name) -> Result<(), Error> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoSuchClaim(name.clone()))
            }
            Err(source) => Err(Error::Write { path, source }),
        }
    }

    /// Moves the devices of a claim to VFIO, as after a boot.
    ///
    /// # Errors
    /// When another device is where one was claimed, or as [`bind`](Self::bind).
    pub fn apply(&self, claim: &Claim) -> Result<Vec<Moved>, Error> {
        let mut moved = Vec::new();
        for Claimed {
            address,
            identity: wanted,
        } in &claim.devices
        {
            let found = identity(&self.device(*address)?);
            if found != *wanted {
                return Err(Error::Another {
                    claim: claim.name.clone(),
                    address: *address,
                    wanted: wanted.clone(),
                    found,
                });
            }
            moved.extend(self.bind(*address)?);
        }
        Ok(moved)
    }

    fn file(&self, name: &Name) -> PathBuf {
        self.path(DIRECTORY).join(format!("{name}.toml"))
    }

    /// Writes a claim: whole, or not at all.
    fn keep(&self, claim: &Claim) -> Result<(), Error> {
        let path = self.file(&claim.name);
        let failed = |source| Error::Write {
            path: path.clone(),
            source,
        };
        let entries = claim.devices.iter().map(|device| Entry {
            address: device.address.to_string(),
            identity: device.identity.clone(),
        });
        let file = File {
            device: entries.collect(),
        };
        let text = toml::to_string(&file).map_err(|e| failed(io::Error::other(e)))?;
        let directory = self.path(DIRECTORY);
        fs::create_dir_all(&directory).map_err(failed)?;
        let new = directory.join(format!(".{}.new", claim.name));
        fs::write(&new, text).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }
}

fn read(path: &Path, name: &str) -> Result<Claim, Error> {
    let wrong = |reason: String| Error::NoClaim {
        path: path.to_owned(),
        reason,
    };
    let text = fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let file: File = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let devices = file.device.into_iter().map(|entry| {
        Ok(Claimed {
            address: entry.address.parse().map_err(|e| wrong(format!("{e}")))?,
            identity: entry.identity,
        })
    });
    Ok(Claim {
        name: name.parse().map_err(|e: NoName| wrong(e.to_string()))?,
        devices: devices.collect::<Result<_, Error>>()?,
    })
}
