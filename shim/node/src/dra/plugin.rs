//! What the kubelet asks: a claim's devices, before its pod starts and after.

use std::collections::HashMap;

use orlop_vmm::host_pci::System;
use tonic::{Request, Response, Status};

use super::cluster::{self, Cluster};
use super::objects::{Allocated, ResourceClaim};
use super::{DRIVER, cdi, slices};
use crate::api::dra::dra_plugin_server::DraPlugin;
use crate::api::dra::{
    Claim, Device, NodePrepareResourceResponse, NodePrepareResourcesRequest,
    NodePrepareResourcesResponse, NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
};
use crate::inventory::{self, Unit};

/// Prepares claims.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Whose devices.
    pub system: System,
    /// Who knows the claims.
    pub cluster: Cluster,
    /// The node, and its pool.
    pub node: String,
    /// What containerd is told by.
    pub files: cdi::Directory,
}

/// Why a claim cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Who knows says nothing.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The files.
    #[error(transparent)]
    Files(#[from] cdi::Error),
    /// The node's own claims.
    #[error(transparent)]
    Claims(#[from] orlop_vmm::host_pci::Error),
    /// Not the one that the kubelet means.
    #[error("it was removed, and another of its name was made")]
    Another,
    /// The scheduler has not chosen yet.
    #[error("nothing is allocated to it")]
    NotAllocated,
    /// There are none.
    #[error("it has parameters for {DRIVER}, which takes none")]
    Parameters,
    /// A guest has a device for itself.
    #[error("it asks for admin access to {0}, which only one VM can have")]
    Admin(String),
    /// It is elsewhere.
    #[error("{device} is of the pool {pool}, not of this node's")]
    Pool {
        /// Which device.
        device: String,
        /// Where it is.
        pool: String,
    },
    /// It went while it was allocated.
    #[error(
        "{0} is not claimed on this node, is not VFIO's, or not what was claimed: `orlop pci apply` there says why"
    )]
    Gone(String),
}

impl Plugin {
    async fn prepare(&self, claim: &Claim) -> Result<Vec<Device>, Error> {
        let known = self.cluster.claim(&claim.namespace, &claim.name).await?;
        let mut units = Vec::new();
        for claimed in self.system.claims()? {
            units.extend(inventory::units(&self.system, &claimed));
        }
        let given = given(&known, &claim.uid, &self.node, &units)?;
        let (given, devices): (Vec<_>, Vec<_>) = given.into_iter().unzip();
        let names = self.files.write(&claim.uid, &devices)?;
        let device = |(allocated, name): (Allocated, String)| Device {
            request_names: vec![allocated.request],
            pool_name: allocated.pool,
            device_name: allocated.device,
            cdi_device_ids: vec![name],
        };
        Ok(given.into_iter().zip(names).map(device).collect())
    }
}

/// Which devices of this node's a claim has, and what its containers get of each.
fn given(
    claim: &ResourceClaim,
    uid: &str,
    node: &str,
    units: &[Unit],
) -> Result<Vec<(Allocated, cdi::Device)>, Error> {
    if claim.metadata.uid != uid {
        return Err(Error::Another);
    }
    let allocation = claim.status.allocation.as_ref();
    let devices = &allocation.ok_or(Error::NotAllocated)?.devices;
    let mut parameters = devices.config.iter().filter_map(|it| it.opaque.as_ref());
    if parameters.any(|opaque| opaque.driver == DRIVER) {
        return Err(Error::Parameters);
    }
    let ours = devices.results.iter().filter(|it| it.driver == DRIVER);
    let found = ours.map(|allocated| {
        let name = &allocated.device;
        if allocated.admin_access == Some(true) {
            return Err(Error::Admin(name.clone()));
        }
        if allocated.pool != node {
            return Err(Error::Pool {
                device: name.clone(),
                pool: allocated.pool.clone(),
            });
        }
        let mut units = units.iter().filter(|unit| unit.is_healthy);
        let unit = units.find(|unit| slices::name(unit) == *name);
        let group = unit.and_then(|unit| Some((unit, unit.group?)));
        let (unit, group) = group.ok_or_else(|| Error::Gone(name.clone()))?;
        let device = cdi::Device {
            name: name.clone(),
            group,
            addresses: unit.addresses.iter().map(ToString::to_string).collect(),
        };
        Ok((allocated.clone(), device))
    });
    found.collect()
}

#[tonic::async_trait]
impl DraPlugin for Plugin {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in request.into_inner().claims {
            let prepared = self.prepare(&claim).await;
            let response = match prepared {
                Ok(devices) => NodePrepareResourceResponse {
                    devices,
                    error: String::new(),
                },
                Err(error) => NodePrepareResourceResponse {
                    devices: Vec::new(),
                    error: format!("claim {}/{}: {error}", claim.namespace, claim.name),
                },
            };
            claims.insert(claim.uid, response);
        }
        Ok(Response::new(NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let removed = |claim: Claim| {
            let error = self.files.remove(&claim.uid).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            (claim.uid, NodeUnprepareResourceResponse { error })
        };
        let claims = request.into_inner().claims.into_iter().map(removed);
        Ok(Response::new(NodeUnprepareResourcesResponse {
            claims: claims.collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::objects::{AllocatedDevices, Allocation, ClaimStatus, Configuration, Opaque};
    use super::*;

    fn unit(is_healthy: bool) -> Unit {
        Unit {
            id: "0000:65:00.0".into(),
            group: Some(7),
            addresses: vec!["0000:65:00.0".parse().unwrap()],
            numa: None,
            is_healthy,
        }
    }

    fn allocated(driver: &str) -> Allocated {
        Allocated {
            request: "disk".into(),
            driver: driver.into(),
            pool: "node-1".into(),
            device: "pci-0000-65-00-0".into(),
            admin_access: None,
        }
    }

    fn claim(results: Vec<Allocated>) -> ResourceClaim {
        let mut claim = ResourceClaim::default();
        claim.metadata.uid = "12".into();
        let config = Vec::new();
        let devices = AllocatedDevices { results, config };
        claim.status = ClaimStatus {
            allocation: Some(Allocation { devices }),
        };
        claim
    }

    #[test]
    fn a_claim_gets_what_the_scheduler_chose_of_this_drivers() {
        let claim = claim(vec![allocated("gpu.example.com"), allocated(DRIVER)]);
        let given = given(&claim, "12", "node-1", &[unit(true)]).unwrap();
        let [(allocated, device)] = &given[..] else {
            panic!("{given:?}");
        };
        assert_eq!(allocated.request, "disk");
        assert_eq!(device.group, 7);
        assert_eq!(device.addresses, ["0000:65:00.0"]);
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_its_reason() {
        let healthy = [unit(true)];
        let refused = |claim: &ResourceClaim, uid, node, units: &[Unit]| {
            given(claim, uid, node, units).unwrap_err().to_string()
        };
        let plain = claim(vec![allocated(DRIVER)]);
        assert!(refused(&plain, "13", "node-1", &healthy).contains("another of its name"));
        assert!(refused(&plain, "12", "node-2", &healthy).contains("the pool node-1"));
        for units in [&[][..], &[unit(false)]] {
            assert!(refused(&plain, "12", "node-1", units).contains("orlop pci apply"));
        }
        let mut waits = claim(Vec::new());
        waits.status.allocation = None;
        assert!(refused(&waits, "12", "node-1", &healthy).contains("nothing is allocated"));
        let mut admin = allocated(DRIVER);
        admin.admin_access = Some(true);
        let admin = claim(vec![admin]);
        assert!(refused(&admin, "12", "node-1", &healthy).contains("admin access"));
        let mut tuned = claim(vec![allocated(DRIVER)]);
        let opaque = Some(Opaque {
            driver: DRIVER.into(),
        });
        let devices = &mut tuned.status.allocation.as_mut().unwrap().devices;
        devices.config.push(Configuration { opaque });
        assert!(refused(&tuned, "12", "node-1", &healthy).contains("parameters"));
    }
}
