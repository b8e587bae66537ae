//! A spec's devices: those that any Linux has, and the disks of this machine that a container is given.
//!
//! A pod's `volumeDevices` come as block devices, each with a rule that lets the container open just that one. A privileged container has all
//! devices of the machine in its spec, and one rule for all of them: these are the host's, and stay there.

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// The numbers of a block device, as this machine's kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// The driver's.
    pub major: u32,
    /// The driver's for this device.
    pub minor: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A block device of this machine that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDisk {
    /// Where the container has it.
    pub path: PathBuf,
    /// Which one it is.
    pub id: DeviceId,
    /// Whether the container may not write to it.
    pub readonly: bool,
}

/// Leaves the devices that a guest can have, and answers those of them that are disks of this machine. The rules about those are taken
/// out: the guest has other numbers for them.
pub(super) fn adapt(linux: &mut Linux) -> Vec<HostDisk> {
    let devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    let disks: Vec<_> = devices
        .iter()
        .filter_map(|device| disk(device, &rules))
        .collect();
    let is_disk = |device: &LinuxDevice| disks.iter().any(|disk| disk.path == *device.path());
    let kept = devices
        .iter()
        .filter(|device| is_disk(device) || is_portable(device));
    linux.set_devices(Some(kept.cloned().collect()));
    if !disks.is_empty() {
        rules.retain(|rule| disks.iter().all(|disk| !names(rule, disk.id)));
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    disks
}

/// The disk that a device is, if a rule gives it to the container.
fn disk(device: &LinuxDevice, rules: &[LinuxDeviceCgroup]) -> Option<HostDisk> {
    if device.typ() != LinuxDeviceType::B {
        return None;
    }
    let id = DeviceId {
        major: device.major().try_into().ok()?,
        minor: device.minor().try_into().ok()?,
    };
    let mut given = rules
        .iter()
        .filter(|rule| rule.allow() && names(rule, id))
        .peekable();
    given.peek()?;
    // A rule that does not say what is allowed allows everything.
    let may_write = |rule: &LinuxDeviceCgroup| {
        let access = rule.access().as_deref();
        access.is_none_or(|access| access.contains('w'))
    };
    Some(HostDisk {
        path: device.path().clone(),
        id,
        readonly: !given.any(may_write),
    })
}

/// Whether a rule is about this block device and no other.
fn names(rule: &LinuxDeviceCgroup, id: DeviceId) -> bool {
    let of_blocks = matches!(
        rule.typ(),
        None | Some(LinuxDeviceType::B | LinuxDeviceType::A)
    );
    let numbers = (rule.major(), rule.minor());
    of_blocks && numbers == (Some(id.major.into()), Some(id.minor.into()))
}

/// Whether a device's number means the same in any Linux: those that the kernel's list of devices fixes, and that a
/// guest without hardware has. All others are the host's.
fn is_portable(device: &LinuxDevice) -> bool {
    let portable = match (device.typ(), device.major(), device.minor()) {
        // mem, full, null, zero, random, urandom; tty and ptmx; fuse; tun
        (LinuxDeviceType::C | LinuxDeviceType::U, 1, 3 | 5 | 7 | 8 | 9) => true,
        (LinuxDeviceType::C | LinuxDeviceType::U, 5, 0 | 2) => true,
        (LinuxDeviceType::C | LinuxDeviceType::U, 10, 200 | 229) => true,
        (LinuxDeviceType::P, ..) => true,
        _ => false,
    };
    if !portable {
        log::debug!(
            "the device {} is the host's, and left out",
            device.path().display()
        );
    }
    portable
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DEVICES: &str = r#"[
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
        {"path": "/dev/data", "type": "b", "major": 8, "minor": 16},
        {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}
    ]"#;

    fn adapted(rules: serde_json::Value) -> (Linux, Vec<HostDisk>) {
        let devices: serde_json::Value = serde_json::from_str(DEVICES).unwrap();
        let linux = json!({ "devices": devices, "resources": { "devices": rules } });
        let mut linux = serde_json::from_value(linux).unwrap();
        let disks = adapt(&mut linux);
        (linux, disks)
    }

    fn paths(linux: &Linux) -> Vec<String> {
        let devices = linux.devices().clone().unwrap();
        let path = |device: &LinuxDevice| device.path().display().to_string();
        devices.iter().map(path).collect()
    }

    #[test]
    fn a_block_device_with_a_rule_of_its_own_is_a_disk() {
        let (linux, disks) = adapted(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rwm"},
        ]));
        assert_eq!(paths(&linux), ["/dev/fuse", "/dev/data"]);
        let (major, minor) = (8, 16);
        let disk = HostDisk {
            path: "/dev/data".into(),
            id: DeviceId { major, minor },
            readonly: false,
        };
        assert_eq!(disks, [disk]);
        let resources = linux.resources().clone().unwrap();
        assert_eq!(resources.devices().clone().unwrap().len(), 1);
    }

    #[test]
    fn who_may_only_read_gets_a_disk_that_cannot_be_written() {
        let (_, disks) =
            adapted(json!([{"allow": true, "type": "b", "major": 8, "minor": 16, "access": "mr"}]));
        assert!(disks[0].readonly);
        let (_, disks) = adapted(json!([{"allow": true, "type": "b", "major": 8, "minor": 16}]));
        assert!(!disks[0].readonly);
    }

    #[test]
    fn the_disks_of_the_machine_stay_there_although_everything_is_allowed() {
        for rules in [
            json!([{"allow": true, "access": "rwm"}]),
            json!([{"allow": true, "type": "b", "major": 8, "access": "rwm"}]),
            json!([{"allow": true, "type": "c", "major": 8, "minor": 16, "access": "rwm"}]),
            json!([{"allow": false, "type": "b", "major": 8, "minor": 16, "access": "rwm"}]),
            json!([]),
        ] {
            let (linux, disks) = adapted(rules.clone());
            assert_eq!(disks, [], "{rules}");
            assert_eq!(paths(&linux), ["/dev/fuse"], "{rules}");
        }
    }
}
