//! A node's claims, as the scheduler is to see them.

use std::collections::BTreeMap;

use orlop_vmm::host_pci::System;
use orlop_vmm::host_pci::claims::Claim;

use super::DRIVER;
use super::objects::{
    API_VERSION, Attribute, Device, Metadata, Owner, Pool, ResourceSlice, SLICE_DEVICES, SliceSpec,
};
use crate::inventory::{self, Unit};

/// What a device is called in the node's pool: its address, as a label of DNS.
pub fn name(unit: &Unit) -> String {
    format!("pci-{}", unit.id.replace([':', '.'], "-"))
}

/// All that can be given to somebody now. What is not healthy is not listed: nobody new gets it, and who has it keeps it.
pub fn devices(system: &System, claims: &[Claim]) -> Vec<Device> {
    let of = |claim| {
        let units = inventory::units(system, claim).into_iter();
        let healthy = units.filter(|unit| unit.is_healthy);
        healthy.map(|unit| device(system, claim, &unit))
    };
    claims.iter().flat_map(of).collect()
}

fn device(system: &System, claim: &Claim, unit: &Unit) -> Device {
    let text = |text: &str| Attribute::String(text.into());
    let mut attributes = BTreeMap::from([
        ("claim".to_owned(), text(claim.name.as_str())),
        ("resource.kubernetes.io/pciBusID".into(), text(&unit.id)),
    ]);
    if let Some(numa) = unit.numa {
        attributes.insert(
            "resource.kubernetes.io/numaNode".into(),
            Attribute::Int(numa),
        );
    }
    let first = unit.addresses.first();
    if let Some(device) = first.and_then(|address| system.host.device(*address)) {
        for name in ["vendor", "device", "class"] {
            if let Some(value) = device.attribute(name) {
                attributes.insert(name.into(), text(&value));
            }
        }
        if let Some(root) = root(&device) {
            attributes.insert("resource.kubernetes.io/pcieRoot".into(), text(&root));
        }
    }
    Device {
        name: name(unit),
        attributes,
    }
}

/// The root complex that a device is below, as `pci0000:00`.
fn root(device: &orlop_vmm::host_pci::Device) -> Option<String> {
    let real = device.path().canonicalize().ok()?;
    let names = real
        .components()
        .filter_map(|part| part.as_os_str().to_str());
    let mut roots = names.filter(|name| name.starts_with("pci") && name.contains(':'));
    roots.next().map(ToOwned::to_owned)
}

/// A node's pool of devices: at least one slice, for a pool without devices is one too.
pub fn slices(node: &Metadata, devices: &[Device], generation: u64) -> Vec<ResourceSlice> {
    let mut parts: Vec<_> = devices.chunks(SLICE_DEVICES).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let pool = Pool {
        name: node.name.clone(),
        generation,
        resource_slice_count: parts.len(),
    };
    let owner = Owner {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.name.clone(),
        uid: node.uid.clone(),
    };
    let slice = |(number, devices): (usize, &&[Device])| ResourceSlice {
        api_version: API_VERSION,
        kind: "ResourceSlice",
        metadata: Metadata {
            name: format!("{}-{DRIVER}-{number}", node.name),
            uid: String::new(),
            owner_references: vec![owner.clone()],
        },
        spec: SliceSpec {
            driver: DRIVER,
            node_name: node.name.clone(),
            pool: pool.clone(),
            devices: devices.to_vec(),
        },
    };
    parts.iter().enumerate().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_as_many_slices_as_its_devices_need() {
        let node = Metadata {
            name: "node-1".into(),
            uid: "7".into(),
            owner_references: Vec::new(),
        };
        let device = |n: usize| Device {
            name: format!("pci-{n}"),
            attributes: BTreeMap::from([("claim".into(), Attribute::String("disk".into()))]),
        };
        for (count, sizes) in [
            (0, &[0][..]),
            (1, &[1]),
            (128, &[128]),
            (257, &[128, 128, 1]),
        ] {
            let devices: Vec<_> = (0..count).map(device).collect();
            let slices = slices(&node, &devices, 3);
            let found: Vec<_> = slices
                .iter()
                .map(|slice| slice.spec.devices.len())
                .collect();
            assert_eq!(found, sizes);
            let counts = slices
                .iter()
                .all(|slice| slice.spec.pool.resource_slice_count == sizes.len());
            assert!(counts);
        }
        let slice = serde_json::to_value(&slices(&node, &[device(0)], 3)[0]).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
            "metadata": {
                "name": "node-1-pci.orlop.dev-0",
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "7" }],
            },
            "spec": {
                "driver": "pci.orlop.dev", "nodeName": "node-1",
                "pool": { "name": "node-1", "generation": 3, "resourceSliceCount": 1 },
                "devices": [{ "name": "pci-0", "attributes": { "claim": { "string": "disk" } } }],
            },
        });
        assert_eq!(slice, expected);
    }
}
