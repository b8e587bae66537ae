//! What a client asks for, checked as the command line checks it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use orlop_proto::vmm::v1 as api;
use tonic::Status;

use crate::config::{DeviceConfig, DiskConfig, NetConfig, ParseError, TapConfig, VhostConfig};
use crate::control::Resize;
use crate::pci::DeviceNumber;

/// How long a guest may take over something when a client does not say.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn disk(request: api::AddDiskRequest) -> Result<DeviceConfig, Status> {
    // The VMM's working directory is none of a client's business.
    if !Path::new(&request.path).is_absolute() {
        return Err(Status::invalid_argument(format!(
            "the disk's path {:?} is not absolute",
            request.path
        )));
    }
    Ok(DeviceConfig::Disk(DiskConfig {
        path: PathBuf::from(request.path),
        readonly: request.readonly,
        serial: unless_empty(&request.serial)?,
    }))
}

pub(super) fn net(request: api::AddNetRequest) -> Result<DeviceConfig, Status> {
    let vhost = match request.vhost() {
        api::Vhost::Unspecified => VhostConfig::Auto,
        api::Vhost::On => VhostConfig::On,
        api::Vhost::Off => VhostConfig::Off,
    };
    Ok(DeviceConfig::Net(NetConfig {
        tap: TapConfig::named(&request.tap, request.queues.max(1)).map_err(invalid)?,
        mac: unless_empty(&request.mac)?,
        vhost,
    }))
}

pub(super) fn device(request: &api::RemoveDeviceRequest) -> Result<DeviceNumber, Status> {
    request.address.parse().map_err(invalid)
}

/// How long the guest may take.
pub(super) fn limit(timeout_ms: u32) -> Duration {
    match timeout_ms {
        0 => PATIENCE,
        ms => Duration::from_millis(ms.into()),
    }
}

pub(super) fn not_yet_gone(number: DeviceNumber, limit: Duration) -> String {
    format!(
        "the guest has not let go of the device at {number} within {limit:?}; it may do so later"
    )
}

pub(super) fn resize(request: &api::ResizeRequest) -> Result<Resize, Status> {
    let vcpus = match request.vcpus {
        0 => None,
        count => Some(count.to_string().parse().map_err(invalid)?),
    };
    let memory = Some(request.memory_bytes).filter(|bytes| *bytes > 0);
    if vcpus.is_none() && memory.is_none() {
        return Err(Status::invalid_argument(
            "say how many vCPUs or how much memory the VM is to have",
        ));
    }
    Ok(Resize { vcpus, memory })
}

pub(super) fn not_yet_resized(limit: Duration) -> String {
    format!(
        "the guest does not have the size that it is to have within {limit:?}; it goes on trying, and `orlop inspect` says how far it is"
    )
}

fn unless_empty<T: FromStr<Err = ParseError>>(text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() {
        Ok(None)
    } else {
        text.parse().map(Some).map_err(invalid)
    }
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}
