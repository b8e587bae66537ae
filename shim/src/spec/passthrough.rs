//! The PCI devices of the host's that a container's spec asks for.
//!
//! Device plugins, CDI and `ctr run --device` all come down to nodes: `/dev/vfio/N` is an IOMMU's group, and all of it goes to the guest;
//! `/dev/vfio/devices/vfioN` is one device. A plugin that gives out one device of a group says which in a variable: `PCI_RESOURCE_…` of
//! KubeVirt's and NVIDIA's plugins has their addresses.
//!
//! Each comes with a rule that lets the container open just that one. A privileged container has all nodes of the host in its spec, and one rule
//! for all of them: these are not asked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, Spec};

use super::SpecError;

/// A device's address on the host, as `0000:65:00.0`, checked to be one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostDevice(String);

impl HostDevice {
    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = |text: &str, least: usize, most: usize| {
            (least..=most).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parts: Vec<_> = text.split([':', '.']).collect();
        let is_address = match parts.as_slice() {
            [domain, bus, device, function] => {
                digits(domain, 4, 8)
                    && digits(bus, 2, 2)
                    && digits(device, 2, 2)
                    && digits(function, 1, 1)
            }
            _ => false,
        };
        is_address.then(|| HostDevice(text.to_ascii_lowercase()))
    }
}

/// The devices that a spec asks for, each once.
///
/// # Errors
/// When a group or a device that it names is not there.
pub fn of(spec: &Spec) -> Result<Vec<HostDevice>, SpecError> {
    of_host(spec, Path::new("/sys"))
}

fn of_host(spec: &Spec, sys: &Path) -> Result<Vec<HostDevice>, SpecError> {
    let linux = spec.linux().as_ref();
    let nodes = linux.and_then(|linux| linux.devices().as_ref());
    let named = named(spec);
    let mut found = BTreeSet::new();
    let given = |node: &&LinuxDevice| is_given(node, linux);
    for node in nodes.into_iter().flatten().filter(given) {
        let path = node.path();
        let missing = || SpecError::NoHostDevice(path.clone());
        let devices = match path.strip_prefix("/dev/vfio") {
            // That which all are opened by.
            Ok(rest) if rest == Path::new("vfio") => continue,
            Ok(rest) => match rest.strip_prefix("devices") {
                Ok(name) => vec![of_node(sys, name).ok_or_else(missing)?],
                Err(_) => of_group(sys, rest).ok_or_else(missing)?,
            },
            Err(_) => continue,
        };
        let chosen: Vec<_> = devices
            .iter()
            .filter(|device| named.contains(device))
            .cloned()
            .collect();
        found.extend(if chosen.is_empty() { devices } else { chosen });
    }
    Ok(found.into_iter().collect())
}

/// Whether a rule gives the container just this device.
fn is_given(node: &LinuxDevice, linux: Option<&Linux>) -> bool {
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    let mut rules = rules.into_iter().flatten();
    rules.any(|rule| {
        let numbers = (rule.major(), rule.minor());
        rule.allow() && numbers == (Some(node.major()), Some(node.minor()))
    })
}

/// The addresses in the variables of device plugins.
fn named(spec: &Spec) -> BTreeSet<HostDevice> {
    let process = spec.process().as_ref();
    let variables = process.and_then(|process| process.env().as_ref());
    let values = variables
        .into_iter()
        .flatten()
        .filter_map(|variable| variable.split_once('='))
        .filter(|(name, _)| name.starts_with("PCI_RESOURCE_"));
    values
        .flat_map(|(_, value)| value.split(','))
        .filter_map(|address| HostDevice::parse(address.trim()))
        .collect()
}

/// The devices of a group but for bridges, which stay with the host.
fn of_group(sys: &Path, group: &Path) -> Option<Vec<HostDevice>> {
    let number: u32 = group.to_str()?.parse().ok()?;
    let directory = sys.join(format!("kernel/iommu_groups/{number}/devices"));
    let names = fs::read_dir(directory).ok()?.flatten();
    let devices = names.filter_map(|entry| {
        const BRIDGE: &str = "0x06";
        let class = fs::read_to_string(entry.path().join("class")).ok()?;
        let device = HostDevice::parse(entry.file_name().to_str()?)?;
        (!class.starts_with(BRIDGE)).then_some(device)
    });
    let devices: Vec<_> = devices.collect();
    (!devices.is_empty()).then_some(devices)
}

/// The device with this node.
fn of_node(sys: &Path, name: &Path) -> Option<HostDevice> {
    let name = name.to_str()?.strip_prefix("vfio")?;
    let number: u32 = name.parse().ok()?;
    let link: PathBuf = sys.join(format!("class/vfio-dev/vfio{number}/device"));
    let target = link.canonicalize().ok()?;
    HostDevice::parse(target.file_name()?.to_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::symlink;

    fn spec(paths: &[&str], env: &[&str]) -> Spec {
        let devices: Vec<_> = paths
            .iter()
            .map(|path| json!({"path": path, "type": "c", "major": 240, "minor": 0}))
            .collect();
        let rule = json!({"allow": true, "type": "c", "major": 240, "minor": 0, "access": "rw"});
        serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "env": env},
            "linux": {"devices": devices, "resources": {"devices": [rule]}},
        }))
        .unwrap()
    }

    fn host() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        for (group, address, class) in [
            (7, "0000:65:00.0", "0x030200"),
            (7, "0000:65:00.1", "0x040300"),
            (7, "0000:64:01.0", "0x060400"),
            (8, "0000:66:00.0", "0x010802"),
        ] {
            let real = sys.path().join("devices").join(address);
            fs::create_dir_all(&real).unwrap();
            fs::write(real.join("class"), class).unwrap();
            let group = sys
                .path()
                .join(format!("kernel/iommu_groups/{group}/devices"));
            fs::create_dir_all(&group).unwrap();
            symlink(&real, group.join(address)).unwrap();
        }
        let node = sys.path().join("class/vfio-dev/vfio3");
        fs::create_dir_all(&node).unwrap();
        symlink(sys.path().join("devices/0000:66:00.0"), node.join("device")).unwrap();
        sys
    }

    fn found(paths: &[&str], env: &[&str]) -> Result<Vec<String>, SpecError> {
        let sys = host();
        let devices = of_host(&spec(paths, env), sys.path())?;
        Ok(devices
            .iter()
            .map(|device| device.as_str().to_owned())
            .collect())
    }

    #[test]
    fn a_group_is_all_of_it_unless_a_variable_says_which() {
        let group = ["/dev/vfio/vfio", "/dev/vfio/7", "/dev/null"];
        let both = ["0000:65:00.0", "0000:65:00.1"];
        assert_eq!(found(&group, &["A=b"]).unwrap(), both);
        let env = ["PCI_RESOURCE_NVIDIA_COM_GPU=0000:65:00.0,0000:99:00.0"];
        assert_eq!(found(&group, &env).unwrap(), both[..1]);
        let twice = ["/dev/vfio/8", "/dev/vfio/devices/vfio3"];
        assert_eq!(found(&twice, &[]).unwrap(), ["0000:66:00.0"]);
        assert!(found(&[], &env).unwrap().is_empty(), "without a node");
    }

    #[test]
    fn a_privileged_container_asks_for_nothing() {
        let sys = host();
        let mut all = serde_json::to_value(spec(&["/dev/vfio/7"], &[])).unwrap();
        let rules = &mut all["linux"]["resources"]["devices"];
        *rules = json!([{"allow": true, "access": "rwm"}]);
        let all: Spec = serde_json::from_value(all).unwrap();
        assert_eq!(of_host(&all, sys.path()).unwrap(), []);
    }

    #[test]
    fn what_is_not_there_is_told() {
        for path in [
            "/dev/vfio/9",
            "/dev/vfio/..",
            "/dev/vfio/devices/vfio9",
            "/dev/vfio/x",
        ] {
            let error = found(&[path], &[]).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
