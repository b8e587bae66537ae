//! The address space in which a VM's devices reach memory, by the IOMMU: one for all of them.
//!
//! There are two interfaces for it in Linux: iommufd, where the host's kernel has it and gives devices nodes of their own, and before
//! that the container, into which groups are put. Which it is shows when the first device is opened. An address space lasts as long as
//! a device is in it; what it maps is [`Ground`](super::ground::Ground)'s to say, for each life of the guest anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use iommufd_bindings::iommufd as sys;
use iommufd_ioctls::{IommuFd, IommufdError, IommufdIoas};

use super::error::{Driver, Error};
use super::given::{Given, Interface};
use super::ioctl::{Container, DeviceFile, Group};
use super::sysfs::{self, Host};
use crate::memory::dma::Dma;

/// An address space.
#[derive(Debug)]
pub struct Space(Kind);

enum Kind {
    /// Groups in it are known as long as a device of theirs is open.
    Container(Container, Mutex<BTreeMap<u32, Weak<Group>>>),
    Iommufd(Arc<IommuFd>, IommufdIoas),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Container(..) => "Container",
            Kind::Iommufd(..) => "Iommufd",
        })
    }
}

/// A device's file, and that by which KVM knows it: the group's, or its own. They are closed in this order.
#[derive(Debug)]
pub struct Opened {
    /// The device's.
    pub file: Arc<DeviceFile>,
    group: Option<Arc<Group>>,
}

impl Opened {
    /// What KVM is to be told of, and whether that stands for several devices.
    pub fn for_kvm(&self) -> RawFd {
        match &self.group {
            Some(group) => group.as_raw_fd(),
            None => self.file.as_raw_fd(),
        }
    }
}

impl Space {
    /// An address space that `device` can be in, by the interface that it is given for; else by the newest one that the host has for it.
    pub fn for_device(device: &sysfs::Device, given: Option<&mut Given>) -> Result<Self, Error> {
        if let Some(given) = given {
            return Self::of(given.interface, given.iommu.take());
        }
        if device.node().is_some_and(|node| node.exists()) && Path::new("/dev/iommu").exists() {
            match IommuFd::new().and_then(iommufd) {
                Ok(kind) => return Ok(Space(kind)),
                Err(error) => {
                    log::info!("the host's iommufd is not used, but its containers: {error}");
                }
            }
        }
        Self::of(Interface::Container, None)
    }

    fn of(interface: Interface, file: Option<File>) -> Result<Self, Error> {
        let kind = match interface {
            Interface::Container => {
                let container = file.map_or_else(Container::open, Container::of);
                Kind::Container(container.map_err(Error::NoVfio)?, Mutex::default())
            }
            Interface::Iommufd => {
                let opened = file.map_or_else(IommuFd::new, |file| Ok(IommuFd::new_from_fd(file)));
                opened
                    .and_then(iommufd)
                    .map_err(|error| Error::NoVfio(errno(error)))?
            }
        };
        Ok(Space(kind))
    }

    /// What it is made by, for people.
    pub fn name(&self) -> &'static str {
        match self.interface() {
            Interface::Container => "container",
            Interface::Iommufd => "iommufd",
        }
    }

    fn interface(&self) -> Interface {
        match &self.0 {
            Kind::Container(..) => Interface::Container,
            Kind::Iommufd(..) => Interface::Iommufd,
        }
    }

    /// Opens a device in it, or takes what was given of it.
    pub fn open(
        &self,
        host: &Host,
        device: &sysfs::Device,
        given: Option<Given>,
    ) -> Result<Opened, Error> {
        let address = device.address;
        if given
            .as_ref()
            .is_some_and(|it| it.interface != self.interface())
        {
            let of = self.name();
            return Err(Error::OtherInterface { address, of });
        }
        let given = given.map(|it| it.device);
        let group = device.group().ok_or(Error::NoIommu(address))?;
        let driver = device.driver();
        if driver.as_deref() != Some(sysfs::VFIO_PCI) {
            let driver = Driver(driver);
            return Err(Error::NotBound { address, driver });
        }
        let said = |what, file: String| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::ResourceBusy => Error::InUse { address, group },
                io::ErrorKind::PermissionDenied => Error::Permission { address, file },
                _ => Error::Refused {
                    what,
                    address,
                    source,
                },
            }
        };
        match &self.0 {
            Kind::Container(container, groups) => {
                let mut groups = groups.lock().unwrap_or_else(PoisonError::into_inner);
                let known = groups.get(&group).and_then(Weak::upgrade);
                let file = format!("/dev/vfio/{group}");
                let opened = match known {
                    Some(opened) => opened,
                    None => {
                        let opened =
                            given.map_or_else(|| Group::open(group), |it| Ok(Group::of(it)));
                        let opened = opened.map_err(said("open", file.clone()))?;
                        let is_viable =
                            opened.is_viable().map_err(said("look at", file.clone()))?;
                        if !is_viable {
                            let why = io::Error::other("the kernel says that it is not viable");
                            let refused = said("have the group of", file)(why);
                            return Err(sibling(host, device, group).unwrap_or(refused));
                        }
                        let is_first = groups.values().all(|other| other.strong_count() == 0);
                        let what = "put the group into a container of";
                        opened.join(container).map_err(said(what, file.clone()))?;
                        if is_first {
                            let what = "turn on the IOMMU for";
                            container.set_iommu().map_err(said(what, file.clone()))?;
                        }
                        Arc::new(opened)
                    }
                };
                let device = opened.device(&address.to_string());
                let device = device.map_err(said("open", file))?;
                groups.insert(group, Arc::downgrade(&opened));
                Ok(Opened {
                    file: Arc::new(device),
                    group: Some(opened),
                })
            }
            Kind::Iommufd(iommufd, space) => {
                let node = device.node().ok_or(Error::NotThere(address))?;
                let name = node.display().to_string();
                let file =
                    given.map_or_else(|| DeviceFile::open(&node), |it| Ok(DeviceFile::of(it)));
                let file = file.map_err(said("open", name.clone()))?;
                file.bind(iommufd.as_raw_fd(), space.id())
                    .map_err(|source| match source.raw_os_error() {
                        // Another process has it (EINVAL, by a group EBUSY), or another process or a driver has one of its group (EPERM).
                        Some(libc::EINVAL | libc::EBUSY | libc::EPERM) => {
                            sibling(host, device, group).unwrap_or(Error::InUse { address, group })
                        }
                        _ => said("bind an iommufd to", name)(source),
                    })?;
                Ok(Opened {
                    file: Arc::new(file),
                    group: None,
                })
            }
        }
    }
}

impl Dma for Space {
    unsafe fn map(&self, at: u64, host: u64, len: u64) -> io::Result<()> {
        match &self.0 {
            // SAFETY: as the caller promises.
            Kind::Container(container, _) => unsafe { container.map(at, host, len) },
            Kind::Iommufd(iommufd, space) => {
                let map = sys::iommu_ioas_map {
                    size: size_of::<sys::iommu_ioas_map>() as u32,
                    flags: sys::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
                        | sys::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE
                        | sys::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
                    ioas_id: space.id(),
                    __reserved: 0,
                    user_va: host,
                    length: len,
                    iova: at,
                };
                iommufd.map_iommu_ioas(&map).map_err(errno)
            }
        }
    }

    fn unmap(&self, at: u64, len: u64) -> io::Result<()> {
        match &self.0 {
            Kind::Container(container, _) => container.unmap(at, len),
            Kind::Iommufd(_, space) => space.unmap(at, len).map_err(errno),
        }
    }
}

fn iommufd(iommufd: IommuFd) -> Result<Kind, IommufdError> {
    let iommufd = Arc::new(iommufd);
    let space = IommufdIoas::new(iommufd.clone())?;
    Ok(Kind::Iommufd(iommufd, space))
}

/// The kernel's own reason.
fn errno(error: IommufdError) -> io::Error {
    match error {
        IommufdError::IommuIoasMap(source) | IommufdError::IommuIoasUnmap(source) => {
            io::Error::from_raw_os_error(source.errno())
        }
        other => io::Error::other(other),
    }
}

/// Another one of a device's group that a driver of the host's has, which keeps all of it from being given away.
fn sibling(host: &Host, device: &sysfs::Device, group: u32) -> Option<Error> {
    let siblings = host.group(group).unwrap_or_default();
    let in_the_way = siblings.iter().find(|sibling| {
        let driver = sibling.driver();
        !sibling.is_bridge() && driver.is_some_and(|driver| driver != sysfs::VFIO_PCI)
    })?;
    Some(Error::Sibling {
        address: device.address,
        sibling: in_the_way.address,
        group,
        driver: Driver(in_the_way.driver()),
    })
}
