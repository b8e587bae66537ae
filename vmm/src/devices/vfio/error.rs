//! Why a device of the host's cannot be had, and what to do about it.

use std::io;
use std::os::fd::RawFd;

use crate::config::HostAddress;

/// Why a device of the host's cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A wrong address, or a device that has been pulled out.
    #[error("the host has no PCI device {0}; `orlop pci ls` lists those that there are")]
    NotThere(HostAddress),
    /// DMA of it could not be confined.
    #[error(
        "{0} is behind no IOMMU, so that it could reach all of the host's memory: turn on VT-d or AMD-Vi in the firmware's set-up, and boot an Intel machine's kernel with intel_iommu=on"
    )]
    NoIommu(HostAddress),
    /// Its driver works with it, or none does.
    #[error("{address} is {driver}, and must be VFIO's: `orlop pci bind {address}` does that")]
    NotBound {
        /// Which.
        address: HostAddress,
        /// What its driver is.
        driver: Driver,
    },
    /// One that the IOMMU cannot tell from it works for the host.
    #[error(
        "{address} cannot be given away while {sibling} in the same IOMMU group {group} is {driver}: `orlop pci bind {address}` takes all of the group"
    )]
    Sibling {
        /// Which.
        address: HostAddress,
        /// What is in the way.
        sibling: HostAddress,
        /// Their group.
        group: u32,
        /// What the sibling's driver is.
        driver: Driver,
    },
    /// Another VM has it, or another one of its group.
    #[error(
        "IOMMU group {group} of {address} is in use by another process, as by another VM: a group has one user at a time"
    )]
    InUse {
        /// Which.
        address: HostAddress,
        /// Its group.
        group: u32,
    },
    /// The user may not.
    #[error(
        "{file}, which {address} is had by, cannot be opened by this user: root can, and can `chown` it"
    )]
    Permission {
        /// Which.
        address: HostAddress,
        /// The file.
        file: String,
    },
    /// No VFIO in the host's kernel.
    #[error("the host's kernel has no VFIO: load the modules vfio_iommu_type1 and vfio-pci")]
    NoVfio(#[source] io::Error),
    /// It is there twice.
    #[error("{0} is this VM's already")]
    Twice(HostAddress),
    /// A file that was handed over for it is another's.
    #[error(
        "fd={1} is no file of {0}: open its node in /dev/vfio/devices, or that of its IOMMU group in /dev/vfio, and hand that over"
    )]
    WrongFile(HostAddress, RawFd),
    /// The other one is not what it should be.
    #[error(
        "iommu={1} of {0} is another file: it is /dev/iommu where fd= is a device's node, and /dev/vfio/vfio where that is a group's"
    )]
    WrongIommu(HostAddress, RawFd),
    /// The VM has devices by one interface, and a file for the other one was handed over.
    #[error(
        "fd= of {address} is not for the VM's {of}, in which its other devices are: hand all of them over by their own nodes, or all by their groups'"
    )]
    OtherInterface {
        /// Which.
        address: HostAddress,
        /// What the others are had by.
        of: &'static str,
    },
    /// It is no PCI device for VFIO.
    #[error("VFIO does not know {0} as a PCI device")]
    NotPci(HostAddress),
    /// The kernel refused something else.
    #[error("VFIO cannot {what} {address}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// With which.
        address: HostAddress,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Memory cannot be pinned.
    #[error(
        "the guest's memory of {mib} MiB must stay in the host's while it has a device of the host's, and this user may not lock as much: raise the limit (`ulimit -l`, LimitMEMLOCK= of a systemd unit) to more than that"
    )]
    MemoryLimit {
        /// How much there is of it.
        mib: u64,
    },
    /// The IOMMU did not take the memory.
    #[error("the IOMMU does not take the guest's memory at {start:#x}, {len:#x} bytes of it")]
    Map {
        /// Where it begins for the guest.
        start: u64,
        /// Its size.
        len: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// KVM has no VFIO.
    #[error("KVM cannot be told of a device of the host's")]
    Kvm(#[source] kvm_ioctls::Error),
    /// There is no guest for it.
    #[error("a device of the host's needs a machine with KVM")]
    NoMachine,
    /// Interrupts.
    #[error("cannot have interrupts from a device of the host's")]
    Interrupts(#[source] io::Error),
}

/// What a device is bound to.
#[derive(Debug, PartialEq, Eq)]
pub struct Driver(pub Option<String>);

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(driver) => write!(f, "the driver {driver}'s"),
            None => f.write_str("no driver's"),
        }
    }
}
