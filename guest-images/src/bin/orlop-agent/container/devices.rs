//! The nodes of devices of the host's that a container is given: the guest's kernel drives them, and names what it makes of them.
//!
//! The host names each by its PCI address in the guest. Its driver may be at work still when the container is made, so the nodes are
//! waited for, a while; a device whose driver makes none, such as a network card, has none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, Spec};

use crate::error::{Error, Result};

/// How long a driver may take to make nodes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes come one after another: when none has come for so long, all are there.
const SETTLED: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(20);
/// As deep as the kernel's directories of a device are looked into.
const DEPTH: usize = 8;
/// As many devices as a container may have.
const MOST: usize = 32;

/// Where a device is on the guest's PCI bus, as `0000:00:05.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Checks that it is one, and no path.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when it is not.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = |text: &str, count: usize| {
            text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parts: Vec<_> = text.split([':', '.']).collect();
        let is_address = match parts.as_slice() {
            [domain, bus, device, function] => {
                digits(domain, 4) && digits(bus, 2) && digits(device, 2) && digits(function, 1)
            }
            _ => false,
        };
        if is_address {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::Invalid(format!("{text:?} is no PCI address")))
    }

    /// Several of them.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), or when they are too many.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>> {
        if texts.len() > MOST {
            let count = texts.len();
            return Err(Error::Invalid(format!("{count} devices are too many")));
        }
        texts.iter().map(|text| Self::parse(text)).collect()
    }
}

/// Gives the container of a spec the nodes of these devices.
pub async fn add(spec: &mut Spec, addresses: &[Address]) {
    let mut found = Vec::new();
    for address in addresses {
        let place = Path::new("/sys/bus/pci/devices").join(&address.0);
        found.extend(wait_for(&place).await);
    }
    let Some(linux) = spec.linux_mut().as_mut().filter(|_| !found.is_empty()) else {
        return;
    };
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|device| found.iter().all(|new| new.path() != device.path()));
    devices.extend(found);
    linux.set_devices(Some(devices));
}

/// Waits for a device's nodes.
async fn wait_for(place: &Path) -> Vec<LinuxDevice> {
    let begin = Instant::now();
    let (mut seen, mut changed) = (BTreeMap::new(), begin);
    // A disk is there when its blocks are.
    let is_storage = class(place).is_some_and(|class| class >> 16 == 1);
    let is_card = class(place).is_some_and(|class| class >> 16 == 2);
    loop {
        let mut now = BTreeMap::new();
        nodes(place, DEPTH, &mut now);
        if now.len() != seen.len() {
            (seen, changed) = (now, Instant::now());
        }
        let has_blocks = seen
            .values()
            .any(|device| device.typ() == LinuxDeviceType::B);
        let is_ready = is_card || (!seen.is_empty() && (has_blocks || !is_storage));
        if is_ready && changed.elapsed() >= SETTLED || begin.elapsed() >= PATIENCE {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    if seen.is_empty() && !is_card {
        log::warn!(
            "the guest's kernel makes no node for the device at {}",
            place.display()
        );
    }
    seen.into_values().collect()
}

fn class(place: &Path) -> Option<u32> {
    let text = fs::read_to_string(place.join("class")).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// The nodes of what is in or below a directory of the kernel's.
fn nodes(directory: &Path, depth: usize, found: &mut BTreeMap<PathBuf, LinuxDevice>) {
    if let Some(device) = node(directory) {
        found.insert(device.path().clone(), device);
    }
    if depth == 0 {
        return;
    }
    // Links lead elsewhere.
    let inner = fs::read_dir(directory).into_iter().flatten().flatten();
    let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in inner {
        nodes(&entry.path(), depth - 1, found);
    }
}

/// The node of one directory, which the kernel has made in `/dev`.
fn node(directory: &Path) -> Option<LinuxDevice> {
    if !directory.join("dev").exists() {
        return None;
    }
    let uevent = fs::read_to_string(directory.join("uevent")).ok()?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    let path = Path::new("/dev").join(name);
    let data = fs::metadata(&path).ok()?;
    let kind = if data.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    };
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(i64::try_from(major(data.rdev())).ok()?)
        .minor(i64::try_from(minor(data.rdev())).ok()?)
        .file_mode(0o660_u32)
        .uid(0_u32)
        .gid(0_u32)
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_no_path() {
        assert!(Address::parse("0000:00:05.0").is_ok());
        for text in [
            "",
            "0000:00:05",
            "..",
            "0000:00:05.0/..",
            "00:05.0",
            "0000:00:0x.0",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        let many = vec!["0000:00:05.0".to_owned(); MOST + 1];
        assert!(Address::parse_all(&many).is_err());
    }

    #[test]
    fn nodes_are_found_below_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("mem/null");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("dev"), "1:3\n").unwrap();
        fs::write(inner.join("uevent"), "MAJOR=1\nMINOR=3\nDEVNAME=null\n").unwrap();
        std::os::unix::fs::symlink("..", inner.join("up")).unwrap();
        let mut found = BTreeMap::new();
        nodes(directory.path(), DEPTH, &mut found);
        let device = &found[Path::new("/dev/null")];
        assert_eq!((device.major(), device.minor()), (1, 3));
        assert_eq!(device.typ(), LinuxDeviceType::C);
        found.clear();
        nodes(directory.path(), 1, &mut found);
        assert!(found.is_empty(), "no deeper than that");
    }
}
