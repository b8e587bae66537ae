//! The disks of the guest, found by their serial numbers, and given to containers as block devices.
//!
//! The host says which disk a device of a container is. Which numbers the disk has, only this kernel knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use orlop_proto::agent::v1::DiskDevice;
use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// Serial numbers of virtio disks have no more bytes (virtio 1.2, 5.2.6).
pub const MAX_SERIAL: usize = 20;

/// How long the kernel may take to find a disk that has just been plugged in.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    name: PathBuf,
    major: i64,
    minor: i64,
}

impl Disk {
    /// Its file in `/dev`.
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// The disk with this serial number, if the kernel has found it yet.
///
/// # Errors
/// When there is no list of disks.
pub fn find(serial: &str) -> Result<Option<Disk>> {
    find_in(Path::new("/sys/block"), serial)
}

/// No disk has this serial number.
pub fn missing(serial: &str) -> Error {
    Error::Invalid(format!(
        "the guest has no disk with the serial number {serial}"
    ))
}

fn find_in(directory: &Path, serial: &str) -> Result<Option<Disk>> {
    let disks =
        fs::read_dir(directory).map_err(|error| Error::system(directory.display(), error))?;
    for disk in disks.flatten() {
        let said = fs::read_to_string(disk.path().join("serial"));
        if said.is_ok_and(|said| said.trim_end() == serial) {
            let numbers = fs::read_to_string(disk.path().join("dev")).unwrap_or_default();
            // A disk that is just being taken away has none any more.
            return Ok(parse(&numbers).map(|(major, minor)| Disk {
                name: disk.file_name().into(),
                major,
                minor,
            }));
        }
    }
    Ok(None)
}

/// `MAJOR:MINOR` and a newline.
fn parse(numbers: &str) -> Option<(i64, i64)> {
    let (major, minor) = numbers.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

async fn wait_for(serial: &str) -> Result<Disk> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(disk) = find(serial)? {
            return Ok(disk);
        }
        if Instant::now() > end {
            return Err(missing(serial));
        }
        sleep(LOOK).await;
    }
}

/// Has devices of the spec be `disks`, once the kernel has found these.
///
/// # Errors
/// `INVALID_ARGUMENT` for a disk that there is not, or a device that the spec does not have.
pub async fn give(spec: &mut Spec, disks: &[DiskDevice]) -> Result<()> {
    for wanted in disks {
        if wanted.serial.is_empty() || wanted.serial.len() > MAX_SERIAL {
            return Err(missing(&wanted.serial));
        }
        let disk = wait_for(&wanted.serial).await?;
        put(spec, wanted, &disk)?;
    }
    Ok(())
}

/// Gives the device of the spec the disk's numbers, and lets the container open it.
fn put(spec: &mut Spec, wanted: &DiskDevice, disk: &Disk) -> Result<()> {
    let unknown = || Error::Invalid(format!("the spec has no block device {}", wanted.path));
    let linux = spec.linux_mut().as_mut().ok_or_else(unknown)?;
    let mut devices = linux.devices().clone().unwrap_or_default();
    let device = devices
        .iter_mut()
        .find(|device| {
            device.typ() == LinuxDeviceType::B && device.path() == Path::new(&wanted.path)
        })
        .ok_or_else(unknown)?;
    device.set_major(disk.major).set_minor(disk.minor);
    linux.set_devices(Some(devices));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule(disk, wanted.readonly));
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

fn rule(disk: &Disk, readonly: bool) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(LinuxDeviceType::B))
        .set_major(Some(disk.major))
        .set_minor(Some(disk.minor))
        .set_access(Some(if readonly { "rm" } else { "rwm" }.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(
            r#"{"ociVersion": "1.0.2", "linux": {"devices": [
                {"path": "/dev/other", "type": "c", "major": 1, "minor": 3},
                {"path": "/dev/data", "type": "b", "major": 7, "minor": 0, "fileMode": 432, "uid": 5}
            ]}}"#,
        )
        .unwrap()
    }

    fn wanted(path: &str) -> DiskDevice {
        DiskDevice {
            path: path.to_owned(),
            serial: "b7:0".to_owned(),
            readonly: true,
        }
    }

    fn disk() -> Disk {
        Disk {
            name: "vdb".into(),
            major: 254,
            minor: 16,
        }
    }

    #[test]
    fn a_device_has_the_numbers_that_its_disk_has_here() {
        let mut spec = spec();
        put(&mut spec, &wanted("/dev/data"), &disk()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let device = &linux.devices().as_ref().unwrap()[1];
        assert_eq!((device.major(), device.minor()), (254, 16));
        assert_eq!((device.file_mode(), device.uid()), (Some(432), Some(5)));
        let rules = linux.resources().as_ref().unwrap().devices();
        let rule = &rules.as_ref().unwrap()[0];
        assert_eq!((rule.major(), rule.minor()), (Some(254), Some(16)));
        assert_eq!(rule.access().as_deref(), Some("rm"));
    }

    #[test]
    fn a_device_that_the_spec_does_not_have_is_an_error() {
        for path in ["/dev/none", "/dev/other"] {
            let error = put(&mut spec(), &wanted(path), &disk()).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_disk_is_found_by_its_serial_number() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("vdb");
        fs::create_dir(&disk).unwrap();
        fs::create_dir(directory.path().join("ram0")).unwrap();
        fs::write(disk.join("serial"), "b7:0\n").unwrap();
        assert_eq!(find_in(directory.path(), "b7:0").unwrap(), None);
        fs::write(disk.join("dev"), "254:16\n").unwrap();
        assert_eq!(
            find_in(directory.path(), "b7:0").unwrap(),
            Some(self::disk())
        );
        assert_eq!(find_in(directory.path(), "b7").unwrap(), None);
    }
}
