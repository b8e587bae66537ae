//! The disks of this machine that a VM has because containers in it are given them.
//!
//! One that several containers have is in the VM once. It is opened here and handed over, so that the VMM needs no way to the machine's
//! devices; and it goes when the last of its containers does, or with the VM.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orlop_proto::agent::v1::DiskDevice;
use orlop_proto::vmm::v1::{AddDiskRequest, RemoveDeviceRequest, WaitOperationRequest};

use super::control::{self, ANSWER_TIMEOUT};
use super::vm::Vm;
use crate::codes::{Failure, Outcome};
use crate::spec::{DeviceId, HostDisk};

/// Why a container does not get a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The machine does not have it.
    #[error("{} cannot be given to the container: this machine has no block device {id}", path.display())]
    Absent {
        /// Where the container would have it.
        path: PathBuf,
        /// Which one it is.
        id: DeviceId,
    },
    /// It cannot be opened.
    #[error("{} cannot be given to the container: {}: {source}", path.display(), device.display())]
    Open {
        /// Where the container would have it.
        path: PathBuf,
        /// Its name here.
        device: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody in the pod has it for reading alone.
    #[error(
        "{} cannot be given to the container for writing: the pod has the block device {id} read-only already", path.display()
    )]
    ReadOnly {
        /// Where the container would have it.
        path: PathBuf,
        /// Which one it is.
        id: DeviceId,
    },
    /// The VM does not take it.
    #[error("{} cannot be given to the container as a disk of its VM: {why}", path.display())]
    Refused {
        /// Where the container would have it.
        path: PathBuf,
        /// What the VMM says.
        why: Failure,
    },
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Absent { .. } | DiskError::ReadOnly { .. } | DiskError::Refused { .. } => {
                Failure::precondition(error.to_string())
            }
            DiskError::Open { .. } => Failure::internal(error.to_string()),
        }
    }
}

/// The disks of a VM that containers have.
#[derive(Debug, Default)]
pub(super) struct Disks(Vec<Attached>);

#[derive(Debug)]
struct Attached {
    id: DeviceId,
    readonly: bool,
    /// Where it is, as the VMM says.
    address: String,
    /// The containers that have it.
    users: BTreeSet<String>,
}

/// By what the guest knows it.
fn serial(id: DeviceId) -> String {
    format!("b{id}")
}

impl Vm {
    /// Has the guest have these disks, for `container`. Answers what the agent is to make of them.
    ///
    /// # Errors
    /// When one cannot be had, or the VMM has no room for it. Those before it are there then, until they are taken away.
    pub async fn give_disks(
        &self,
        container: &str,
        disks: &[HostDisk],
    ) -> Outcome<Vec<DiskDevice>> {
        let mut given = Vec::new();
        let mut attached = self.disks().await;
        for disk in disks {
            self.attach(&mut attached.0, container, disk).await?;
            given.push(DiskDevice {
                path: disk.path.to_string_lossy().into_owned(),
                serial: serial(disk.id),
                readonly: disk.readonly,
            });
        }
        Ok(given)
    }

    async fn attach(
        &self,
        attached: &mut Vec<Attached>,
        container: &str,
        disk: &HostDisk,
    ) -> Outcome<()> {
        if let Some(one) = attached.iter_mut().find(|one| one.id == disk.id) {
            if one.readonly && !disk.readonly {
                let (path, id) = (disk.path.clone(), disk.id);
                return Err(DiskError::ReadOnly { path, id }.into());
            }
            one.users.insert(container.to_owned());
            return Ok(());
        }
        let file = open(disk)?;
        let (mut vmm, files) = control::connect().await?;
        files.push(OwnedFd::from(file));
        let add = AddDiskRequest {
            path: String::new(),
            readonly: disk.readonly,
            serial: serial(disk.id),
            file: true,
        };
        let added = self.call_within(ANSWER_TIMEOUT, vmm.add_disk(add)).await;
        let added = added.map_err(|why| DiskError::Refused {
            path: disk.path.clone(),
            why,
        })?;
        log::info!("disk {} at={} for={container}", disk.id, added.address);
        attached.push(Attached {
            id: disk.id,
            readonly: disk.readonly,
            address: added.address,
            users: BTreeSet::from([container.to_owned()]),
        });
        Ok(())
    }

    /// Takes away the disks that nobody but `container` has.
    pub async fn take_disks(&self, container: &str) {
        let mut attached = self.disks().await;
        for one in &mut attached.0 {
            one.users.remove(container);
        }
        for one in attached.0.extract_if(.., |one| one.users.is_empty()) {
            if self.ended_now().is_some() {
                continue;
            }
            if let Err(failure) = self.detach(&one).await {
                log::warn!("the disk {} stays with the VM: {failure}", one.id);
            }
        }
    }

    async fn detach(&self, disk: &Attached) -> Outcome<()> {
        let (mut vmm, _) = control::connect().await?;
        let mut waiter = vmm.clone();
        let remove = RemoveDeviceRequest {
            address: disk.address.clone(),
            timeout_ms: 0,
        };
        let begun = self.call_within(ANSWER_TIMEOUT, vmm.remove_device(remove));
        let wait = WaitOperationRequest {
            id: begun.await?.id,
        };
        let done = waiter.wait_operation(wait);
        self.call_within(2 * ANSWER_TIMEOUT, done).await.map(drop)
    }
}

/// Opens a disk, by the name that the kernel gave it.
fn open(disk: &HostDisk) -> Result<File, DiskError> {
    let absent = || DiskError::Absent {
        path: disk.path.clone(),
        id: disk.id,
    };
    let uevent = fs::read_to_string(format!("/sys/dev/block/{}/uevent", disk.id));
    let device = name(&uevent.map_err(|_| absent())?).ok_or_else(absent)?;
    let failed = |source| DiskError::Open {
        path: disk.path.clone(),
        device: device.clone(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(!disk.readonly)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(&device)
        .map_err(failed)?;
    let is_it = is(&file.metadata().map_err(failed)?, disk.id);
    is_it.then_some(file).ok_or_else(absent)
}

/// Whether a file is this device: names may change hands.
fn is(file: &Metadata, id: DeviceId) -> bool {
    file.file_type().is_block_device() && file.rdev() == libc::makedev(id.major, id.minor)
}

/// The device's file, as its uevent says: a line `DEVNAME=loop0`.
fn name(uevent: &str) -> Option<PathBuf> {
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_name_that_the_kernel_says() {
        let uevent = "MAJOR=7\nMINOR=0\nDEVNAME=loop0\nDEVTYPE=disk\n";
        assert_eq!(name(uevent).unwrap(), Path::new("/dev/loop0"));
        assert_eq!(name("MAJOR=7\n"), None);
    }

    #[test]
    fn a_serial_number_says_which_device_it_is_and_is_short_enough() {
        let id = |major, minor| DeviceId { major, minor };
        assert_eq!(serial(id(259, 3)), "b259:3");
        // The kernel has 12 bits for the one and 20 for the other.
        assert!(serial(id(0xfff, 0xfffff)).len() <= 20);
    }

    #[test]
    fn a_device_that_the_machine_does_not_have_is_named() {
        let disk = HostDisk {
            path: "/dev/data".into(),
            id: DeviceId {
                major: 4095,
                minor: 1,
            },
            readonly: false,
        };
        let failure = Failure::from(open(&disk).unwrap_err());
        let message = failure.to_string();
        assert!(
            message.contains("/dev/data") && message.contains("4095:1"),
            "{message}"
        );
    }
}
