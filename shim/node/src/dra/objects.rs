//! What the API server is told and asked of `resource.k8s.io/v1`: the parts of its objects that matter here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What this API is called in objects.
pub const API_VERSION: &str = "resource.k8s.io/v1";

/// How many devices one [`ResourceSlice`] may list.
pub const SLICE_DEVICES: usize = 128;

/// Devices of a node, as the scheduler sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceSlice {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// `ResourceSlice`.
    pub kind: &'static str,
    /// Its name, and the node that it goes with.
    pub metadata: Metadata,
    /// What it says.
    pub spec: SliceSpec,
}

/// What an object is called, and what it goes with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// The server's name of it, which no later object of the same name has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Without these it is removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<Owner>,
}

/// An object that another one goes with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Its API.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The server's name of it.
    pub uid: String,
}

/// An object of which only its name is of interest.
#[derive(Debug, Deserialize)]
pub struct Named {
    /// Its name.
    pub metadata: Metadata,
}

/// Some objects.
#[derive(Debug, Deserialize)]
pub struct List {
    /// The objects.
    pub items: Vec<Named>,
}

/// What a [`ResourceSlice`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceSpec {
    /// Who hands the devices out.
    pub driver: &'static str,
    /// The node that has them.
    pub node_name: String,
    /// What it is a part of.
    pub pool: Pool,
    /// [`SLICE_DEVICES`] at most.
    pub devices: Vec<Device>,
}

/// What a node's slices are together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Its name: the node's.
    pub name: String,
    /// Slices of an older generation count no longer.
    pub generation: u64,
    /// How many slices it is.
    pub resource_slice_count: usize,
}

/// A device that a claim can be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name in the pool, a label of DNS.
    pub name: String,
    /// What claims select it by.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Attribute {
    /// A text of 64 characters at most.
    String(String),
    /// A number.
    Int(i64),
}

/// What somebody asked for, and what the scheduler chose.
#[derive(Debug, Default, Deserialize)]
pub struct ResourceClaim {
    /// Which one it is.
    pub metadata: Metadata,
    /// What came of it.
    #[serde(default)]
    pub status: ClaimStatus,
}

/// What came of a claim.
#[derive(Debug, Default, Deserialize)]
pub struct ClaimStatus {
    /// What the scheduler chose, once it has.
    pub allocation: Option<Allocation>,
}

/// What the scheduler chose.
#[derive(Debug, Default, Deserialize)]
pub struct Allocation {
    /// Which devices.
    #[serde(default)]
    pub devices: AllocatedDevices,
}

/// The devices of a claim.
#[derive(Debug, Default, Deserialize)]
pub struct AllocatedDevices {
    /// Which; also those of other drivers.
    #[serde(default)]
    pub results: Vec<Allocated>,
    /// Parameters of drivers, from the claim or its class.
    #[serde(default)]
    pub config: Vec<Configuration>,
}

/// A device of a claim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocated {
    /// Which of the claim's requests it is for.
    pub request: String,
    /// Whose it is.
    pub driver: String,
    /// Where it is.
    pub pool: String,
    /// Which it is there.
    pub device: String,
    /// Whether somebody else may have it as well.
    #[serde(default)]
    pub admin_access: Option<bool>,
}

/// Parameters of a driver.
#[derive(Debug, Deserialize)]
pub struct Configuration {
    /// Those that only a driver understands.
    pub opaque: Option<Opaque>,
}

/// Parameters that only a driver understands.
#[derive(Debug, Deserialize)]
pub struct Opaque {
    /// Which one.
    pub driver: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_with_whatever_else_is_in_it() {
        let text = r#"{
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "name": "disk", "namespace": "default", "uid": "12", "resourceVersion": "7" },
            "spec": { "devices": { "requests": [{ "name": "one", "exactly": { "deviceClassName": "pci.orlop.dev", "count": 1 } }] } },
            "status": {
                "allocation": {
                    "devices": {
                        "results": [{ "request": "one", "driver": "pci.orlop.dev", "pool": "node-1", "device": "pci-0000-65-00-0", "adminAccess": null }],
                        "config": [{ "source": "FromClass", "requests": [], "opaque": { "driver": "gpu.example.com", "parameters": {} } }]
                    },
                    "nodeSelector": {}
                },
                "reservedFor": []
            }
        }"#;
        let claim: ResourceClaim = serde_json::from_str(text).unwrap();
        assert_eq!(claim.metadata.uid, "12");
        let devices = claim.status.allocation.unwrap().devices;
        assert_eq!(devices.results[0].device, "pci-0000-65-00-0");
        assert_eq!(devices.results[0].admin_access, None);
        assert_eq!(
            devices.config[0].opaque.as_ref().unwrap().driver,
            "gpu.example.com"
        );
        let waits = r#"{ "metadata": { "name": "disk", "uid": "12" }, "status": {} }"#;
        let waits: ResourceClaim = serde_json::from_str(waits).unwrap();
        assert!(waits.status.allocation.is_none());
    }
}
