//! Files of VFIO's that whoever started the VMM has opened for it, so that it needs no right to open them itself.
//!
//! A descriptor is a number that somebody wrote on a command line: before it is used for a device, it must be that device's by what sysfs says of
//! the file behind it.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;

use nix::sys::stat::{major, minor};
use orlop_proto::files;

use super::error::Error;
use super::sysfs::{self, Host};
use crate::config::{HostAddress, VfioFiles};

/// By which of Linux' two interfaces a device is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The device's own node below `/dev/vfio/devices`, and `/dev/iommu`.
    Iommufd,
    /// The node of its group, and `/dev/vfio/vfio`.
    Container,
}

/// What a device's user has handed over.
#[derive(Debug)]
pub struct Given {
    /// What these files are of.
    pub interface: Interface,
    /// The device's node, or its group's.
    pub device: File,
    /// `/dev/iommu` or `/dev/vfio/vfio`.
    pub iommu: Option<File>,
}

impl Given {
    /// Copies of the files that stand for `device`; `None` where there are none.
    ///
    /// # Errors
    /// When one is not open, or is another file.
    pub fn of(
        files: VfioFiles,
        host: &Host,
        device: &sysfs::Device,
    ) -> Result<Option<Self>, Error> {
        let Some(number) = files.device else {
            return Ok(None);
        };
        let node = device.node_number();
        let group = device.group().and_then(|group| host.group_number(group));
        let (file, found) = open(device.address, number)?;
        let interface = match found {
            found if found.is_some() && found == node => Interface::Iommufd,
            found if found.is_some() && found == group => Interface::Container,
            _ => return Err(Error::WrongFile(device.address, number)),
        };
        let iommu = files.iommu.map(|number| {
            let (file, found) = open(device.address, number)?;
            let name = match interface {
                Interface::Iommufd => "iommu",
                Interface::Container => "vfio",
            };
            match found {
                Some(_) if found == host.misc_number(name) => Ok(file),
                _ => Err(Error::WrongIommu(device.address, number)),
            }
        });
        Ok(Some(Given {
            interface,
            device: file,
            iommu: iommu.transpose()?,
        }))
    }
}

/// A copy of an open file, and the number of the device that it is, as sysfs writes such (`major:minor`).
fn open(address: HostAddress, number: RawFd) -> Result<(File, Option<String>), Error> {
    let refused = |source| Error::Refused {
        what: "use a file that was handed over for",
        address,
        source,
    };
    let file = File::from(files::copy(number).map_err(refused)?);
    let data = file.metadata().map_err(refused)?;
    let device = data.st_rdev();
    let found = format!("{}:{}", major(device), minor(device));
    let is_device = data.file_type().is_char_device();
    Ok((file, is_device.then_some(found)))
}

/// Closes what was handed over, once all devices have copies: a file that stays open here keeps its device from the host after its guest has let go of it.
pub fn close<'c>(all: impl Iterator<Item = &'c VfioFiles>) {
    let mut numbers: Vec<RawFd> = all
        .flat_map(|files| [files.device, files.iommu])
        .flatten()
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        // SAFETY: whoever started this process has left the file to it, for these devices, and it is closed once.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    /// A host whose device 0000:01:00.0 has the node `node` and is in group 7, which has the node `group`.
    fn host(node: &str, group: &str) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(device.join("vfio-dev/vfio3")).unwrap();
        fs::write(device.join("vfio-dev/vfio3/dev"), format!("{node}\n")).unwrap();
        std::os::unix::fs::symlink("../groups/7", device.join("iommu_group")).unwrap();
        for (name, number) in [
            ("vfio/7", group),
            ("misc/iommu", "1:3"),
            ("misc/vfio", "1:5"),
        ] {
            let class = root.path().join("class").join(name);
            fs::create_dir_all(&class).unwrap();
            fs::write(class.join("dev"), format!("{number}\n")).unwrap();
        }
        let host = Host::at(root.path());
        (root, host)
    }

    #[test]
    fn a_file_is_what_the_host_says_that_it_is() {
        // /dev/null is 1:3, /dev/zero is 1:5 on every Linux.
        let [null, zero] = ["/dev/null", "/dev/zero"].map(|path| File::open(path).unwrap());
        let of = |node: &str, group: &str, device: RawFd, iommu: Option<RawFd>| {
            let (_root, host) = host(node, group);
            let found = host.device("0000:01:00.0".parse().unwrap()).unwrap();
            let files = VfioFiles {
                device: Some(device),
                iommu,
            };
            Given::of(files, &host, &found).map(|given| given.unwrap().interface)
        };
        let (null, zero) = (null.as_raw_fd(), zero.as_raw_fd());
        assert_eq!(of("1:5", "9:9", zero, None).unwrap(), Interface::Iommufd);
        assert_eq!(
            of("1:5", "9:9", zero, Some(null)).unwrap(),
            Interface::Iommufd
        );
        assert_eq!(
            of("9:9", "1:3", null, Some(zero)).unwrap(),
            Interface::Container
        );
        let error = of("9:9", "8:8", null, None).unwrap_err();
        assert!(
            matches!(error, Error::WrongFile(_, number) if number == null),
            "{error}"
        );
        let error = of("1:5", "9:9", zero, Some(zero)).unwrap_err();
        assert!(
            matches!(error, Error::WrongIommu(_, number) if number == zero),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_device_or_not_open_is_nobodys() {
        let (_root, host) = host("1:3", "1:5");
        let found = host.device("0000:01:00.0".parse().unwrap()).unwrap();
        let of = |device| {
            let files = VfioFiles {
                device,
                iommu: None,
            };
            Given::of(files, &host, &found)
        };
        assert!(of(None).unwrap().is_none());
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            of(Some(file.as_raw_fd())),
            Err(Error::WrongFile(..))
        ));
        assert!(matches!(of(Some(9999)), Err(Error::Refused { .. })));
    }
}
