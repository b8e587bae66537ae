//! What a client asks for, checked as the command line checks it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use orlop_proto::files::Files;
use orlop_proto::vmm::v1 as api;
use tonic::{Request, Status};

use crate::config::{
    DeviceConfig, DiskConfig, FsBackend, FsConfig, HostDeviceConfig, HostFile, NetConfig,
    ParseError, TapConfig, VhostConfig,
};
use crate::control::Resize;
use crate::devices::virtio::net::PAIRS_MAX;
use crate::pci::DeviceNumber;
use crate::terminal::Size;

/// How long a guest may take over something when a client does not say.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device, and the files that it is on.
type Device = (DeviceConfig, Vec<OwnedFd>);

pub(super) fn disk(call: Request<api::AddDiskRequest>) -> Result<Device, Status> {
    let files = handed_over(&call, call.get_ref().file.into())?;
    let request = call.into_inner();
    let file = match files.first() {
        Some(file) if request.path.is_empty() => HostFile::Given(file.as_raw_fd()),
        Some(_) => {
            return Err(Status::invalid_argument(
                "the disk is told by its path or handed over, not both",
            ));
        }
        None => HostFile::Path(absolute("disk", request.path)?),
    };
    let disk = DiskConfig {
        file,
        readonly: request.readonly,
        serial: unless_empty(&request.serial)?,
    };
    Ok((DeviceConfig::Disk(disk), files))
}

/// The files that came with a call.
fn handed_over<T>(call: &Request<T>, count: usize) -> Result<Vec<OwnedFd>, Status> {
    if count > usize::from(PAIRS_MAX) {
        return Err(Status::invalid_argument(format!(
            "{count} files are more than a device can have: {PAIRS_MAX}"
        )));
    }
    match call.extensions().get::<Files>() {
        Some(files) => files.take(count).map_err(invalid),
        None => Ok(Vec::new()),
    }
}

pub(super) fn net(call: Request<api::AddNetRequest>) -> Result<Device, Status> {
    let count = usize::try_from(call.get_ref().files).map_err(invalid)?;
    let files = handed_over(&call, count)?;
    let request = call.into_inner();
    let vhost = match request.vhost() {
        api::Vhost::Unspecified => VhostConfig::Auto,
        api::Vhost::On => VhostConfig::On,
        api::Vhost::Off => VhostConfig::Off,
    };
    let tap = if files.is_empty() {
        TapConfig::named(&request.tap, request.queues.max(1)).map_err(invalid)?
    } else if request.tap.is_empty() && request.queues == 0 {
        TapConfig::Given(files.iter().map(AsRawFd::as_raw_fd).collect())
    } else {
        return Err(Status::invalid_argument(
            "the tap is told by its name or handed over, a file for each pair of queues, not both",
        ));
    };
    let net = NetConfig {
        tap,
        mac: unless_empty(&request.mac)?,
        vhost,
    };
    Ok((DeviceConfig::Net(net), files))
}

pub(super) fn fs(request: api::AddFsRequest) -> Result<Device, Status> {
    let fs = FsConfig {
        tag: request.tag.parse().map_err(invalid)?,
        backend: FsBackend::Socket(absolute("socket", request.socket)?),
    };
    Ok((DeviceConfig::Fs(fs), Vec::new()))
}

pub(super) fn host_device(request: api::AddHostDeviceRequest) -> Result<Device, Status> {
    let text = match request.id.as_str() {
        "" => request.address,
        id => format!("{},id={id}", request.address),
    };
    let device = text.parse::<HostDeviceConfig>().map_err(invalid)?;
    Ok((DeviceConfig::Host(device), Vec::new()))
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

pub(super) fn size(request: &api::ResizeConsoleRequest) -> Result<Size, Status> {
    let number = |number: u32| {
        u16::try_from(number).map_err(|_| {
            Status::invalid_argument(format!("a terminal is no {number} characters large"))
        })
    };
    Ok(Size {
        columns: number(request.width)?,
        rows: number(request.height)?,
    })
}

/// A path that does not begin at the VMM's working directory, which is none of a client's business.
fn absolute(whose: &str, path: String) -> Result<PathBuf, Status> {
    if Path::new(&path).is_absolute() {
        return Ok(path.into());
    }
    Err(Status::invalid_argument(format!(
        "the {whose}'s path {path:?} is not absolute"
    )))
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
