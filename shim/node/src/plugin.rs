//! One claim, as the kubelet knows it: what there is of it, and what a container gets.

use std::collections::HashMap;
use std::pin::Pin;

use orlop_vmm::host_pci::claims::Name;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::api::device_plugin as api;
use crate::api::device_plugin::device_plugin_server::DevicePlugin;
use crate::inventory::{self, Unit};

/// What the kubelet is told of this plugin.
pub fn options() -> api::DevicePluginOptions {
    api::DevicePluginOptions {
        pre_start_required: false,
        get_preferred_allocation_available: true,
    }
}

/// A claim's plugin.
#[derive(Debug)]
pub struct Plugin {
    name: Name,
    units: watch::Receiver<Vec<Unit>>,
}

impl Plugin {
    /// That of the claim `name`, with what there is of it at any time.
    pub fn new(name: Name, units: watch::Receiver<Vec<Unit>>) -> Self {
        Plugin { name, units }
    }

    /// What a container gets with these groups.
    fn container(&self, ids: &[String]) -> Result<api::ContainerAllocateResponse, Status> {
        let units = self.units.borrow();
        let mut paths = vec!["/dev/vfio/vfio".to_owned()];
        let mut addresses = Vec::new();
        for id in ids {
            let unit = units.iter().find(|unit| unit.id == *id);
            let unit = unit.ok_or_else(|| {
                Status::not_found(format!("{id} is not of the claim {}", self.name))
            })?;
            let group = unit.group.filter(|_| unit.is_healthy).ok_or_else(|| {
                Status::failed_precondition(format!(
                    "{id} is not VFIO's, or not what was claimed: `orlop pci apply` on its node says why"
                ))
            })?;
            paths.push(format!("/dev/vfio/{group}"));
            addresses.extend(unit.addresses.iter().map(ToString::to_string));
        }
        let devices = paths.into_iter().map(|path| api::DeviceSpec {
            container_path: path.clone(),
            host_path: path,
            permissions: "rw".into(),
        });
        Ok(api::ContainerAllocateResponse {
            envs: HashMap::from([(self.variable(), addresses.join(","))]),
            devices: devices.collect(),
        })
    }

    /// The variable with the devices' addresses, as other plugins name theirs.
    fn variable(&self) -> String {
        let resource = self.name.resource().to_ascii_uppercase();
        let name = resource.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        format!("PCI_RESOURCE_{name}")
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let units = WatchStream::new(self.units.clone());
        let lists = units.map(|units| {
            let devices = units.iter().map(Unit::device).collect();
            Ok(api::ListAndWatchResponse { devices })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let units = self.units.borrow().clone();
        let requests = request.into_inner().container_requests;
        let container_responses = requests.iter().map(|wanted| {
            let size = usize::try_from(wanted.allocation_size).unwrap_or(0);
            let device_ids = inventory::preferred(
                &units,
                &wanted.available_device_ids,
                &wanted.must_include_device_ids,
                size,
            );
            api::ContainerPreferredAllocationResponse { device_ids }
        });
        Ok(Response::new(api::PreferredAllocationResponse {
            container_responses: container_responses.collect(),
        }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let container_responses = requests
            .iter()
            .map(|wanted| self.container(&wanted.devices_ids))
            .collect::<Result<_, _>>()?;
        Ok(Response::new(api::AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        // The VMM resets a device when it gets it.
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}
