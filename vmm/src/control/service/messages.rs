//! What the controller says, in the words of the API.

use orlop_proto::vmm::v1 as api;

use crate::config::ConsoleDevice;
use crate::control::{Refusal, State, Status};
use crate::memory::Sharing;
use crate::pci::Description;
use crate::vm::Outcome;

impl From<Status> for api::DescribeResponse {
    fn from(status: Status) -> Self {
        let state = match status.state {
            State::Created => api::VmState::Created,
            State::Running => api::VmState::Running,
            State::Paused => api::VmState::Paused,
        };
        api::DescribeResponse {
            name: status.name,
            version: env!("CARGO_PKG_VERSION").into(),
            state: state.into(),
            vcpus: u32::try_from(status.vcpus).unwrap_or(u32::MAX),
            max_vcpus: status.most_vcpus.into(),
            memory_bytes: status.memory,
            wanted_memory_bytes: status.wanted_memory,
            max_memory_bytes: status.most_memory,
            memory_shared: status.sharing != Sharing::Private,
            huge_page_bytes: match status.sharing {
                Sharing::Huge(pages) => pages.bytes(),
                Sharing::Private | Sharing::Shared => 0,
            },
            pid: std::process::id(),
            devices: status
                .devices
                .into_iter()
                .map(api::PciDevice::from)
                .collect(),
            exits: status
                .exits
                .into_iter()
                .map(|(k, v)| (k.into(), v))
                .collect(),
            console: Some(api::Console {
                device: api::ConsoleDevice::from(status.console).into(),
                // It is /dev/pts and a number.
                pty: status
                    .pty
                    .map_or_else(String::new, |pty| pty.display().to_string()),
            }),
        }
    }
}

impl From<ConsoleDevice> for api::ConsoleDevice {
    fn from(device: ConsoleDevice) -> Self {
        match device {
            ConsoleDevice::Serial => api::ConsoleDevice::Serial,
            ConsoleDevice::Virtio => api::ConsoleDevice::Virtio,
        }
    }
}

impl From<Description> for api::PciDevice {
    fn from(device: Description) -> Self {
        let Description { number, identity } = device;
        let counters = identity.counters.into_iter();
        api::PciDevice {
            address: number.to_string(),
            vendor_id: identity.vendor.into(),
            device_id: identity.device.into(),
            kind: identity.kind.into(),
            tag: identity.tag.unwrap_or_default(),
            counters: counters.map(|(k, v)| (k.into(), v)).collect(),
        }
    }
}

impl From<&Outcome> for api::Outcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::PoweredOff => api::Outcome::PoweredOff,
            Outcome::Reset => api::Outcome::Reset,
            Outcome::TripleFault => api::Outcome::TripleFault,
            Outcome::Panicked => api::Outcome::Panicked,
            Outcome::Killed => api::Outcome::Killed,
            Outcome::Failed(_) => api::Outcome::VmmError,
        }
    }
}

impl From<&Outcome> for api::WaitResponse {
    fn from(outcome: &Outcome) -> Self {
        api::WaitResponse {
            outcome: api::Outcome::from(outcome).into(),
            message: outcome.to_string(),
        }
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotBooted
            | Refusal::Paused(_)
            | Refusal::NoBalloon
            | Refusal::Pinned
            | Refusal::NoSize(_)
            | Refusal::FixedVcpus
            | Refusal::FixedMemory
            | Refusal::HugePages
            | Refusal::NotShared
            | Refusal::Host(_) => tonic::Status::failed_precondition(refusal.to_string()),
            Refusal::BalloonSize { .. }
            | Refusal::TooManyVcpus { .. }
            | Refusal::MemorySize { .. }
            | Refusal::MemoryBlock { .. } => tonic::Status::invalid_argument(refusal.to_string()),
            Refusal::TagTaken(_) => tonic::Status::already_exists(refusal.to_string()),
            Refusal::NoDevice(_) => tonic::Status::not_found(refusal.to_string()),
            Refusal::NoPlace => tonic::Status::resource_exhausted(refusal.to_string()),
        }
    }
}
