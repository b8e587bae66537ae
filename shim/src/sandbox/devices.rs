//! The host's devices in a pod's VM: those that its first containers ask for are there when it boots, those of later ones come while it runs.
//!
//! They stay until the VM ends, also when their container does not: one that is started again finds them.

use std::time::Duration;

use orlop_proto::vmm::v1::{AddHostDeviceRequest, DescribeRequest};

use super::{Pod, Vm, control};
use crate::codes::Outcome;
use crate::spec::HostDevice;

/// How long the VMM may take to answer; to have all of a guest's memory pinned takes a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

impl Pod {
    /// Where these devices are in the VM, as their PCI addresses there; those that are not there yet come.
    ///
    /// # Errors
    /// What the VMM says of a device that it cannot have.
    pub async fn places(&self, vm: &Vm, devices: &[HostDevice]) -> Outcome<Vec<String>> {
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        let (mut vmm, _) = control::connect().await?;
        let mut asker = vmm.clone();
        let described = asker.describe(DescribeRequest {});
        let described = vm.call_within(ANSWER_TIMEOUT, described).await?;
        let mut places = Vec::new();
        for device in devices {
            let there = described
                .devices
                .iter()
                .find(|there| there.kind == "vfio-pci" && there.tag == device.as_str());
            let place = match there {
                Some(there) => there.address.clone(),
                None => {
                    let request = AddHostDeviceRequest {
                        address: device.as_str().to_owned(),
                        id: String::new(),
                    };
                    let added = vmm.add_host_device(request);
                    vm.call_within(ANSWER_TIMEOUT, added).await?.address
                }
            };
            places.push(place);
        }
        Ok(places)
    }
}
