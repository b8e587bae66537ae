//! Moving devices between their drivers and VFIO: each is told by name which driver it is to have (`driver_override`), and the kernel looks
//! for one anew. So no driver is taught ids (`new_id`), which would take every other device of the kind as well.

use std::fs;
use std::io;

use super::{Device, Error, System, VFIO_PCI, blockers};
use crate::config::HostAddress;
use crate::devices::vfio::Driver;

/// What a device was before and is now.
#[derive(Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which.
    pub address: HostAddress,
    /// Its driver before.
    pub from: Option<String>,
    /// Its driver now.
    pub to: Option<String>,
}

impl System {
    /// A device.
    ///
    /// # Errors
    /// [`Error::NotThere`].
    pub fn device(&self, address: HostAddress) -> Result<Device, Error> {
        self.host.device(address).ok_or(Error::NotThere(address))
    }

    /// Gives a device and all of its group to VFIO: all of them, or none. What is VFIO's already stays.
    ///
    /// # Errors
    /// When the host needs one of them, or the kernel does not do it.
    pub fn bind(&self, address: HostAddress) -> Result<Vec<Moved>, Error> {
        let device = self.device(address)?;
        let together = self.together(&device).map_err(|source| Error::Read {
            path: device.path().join("iommu_group"),
            source,
        })?;
        for member in &together {
            if let Some(blocker) = blockers::of(self, member).into_iter().next() {
                let address = member.address;
                return Err(Error::Blocked { address, blocker });
            }
        }
        if !self
            .host
            .root()
            .join("bus/pci/drivers")
            .join(VFIO_PCI)
            .exists()
        {
            return Err(Error::NoDriver);
        }
        let mut moved: Vec<Moved> = Vec::new();
        for member in &together {
            match self.to_vfio(member) {
                Ok(from) => moved.push(Moved {
                    address: member.address,
                    from,
                    to: member.driver(),
                }),
                Err(error) => {
                    // As it was, as far as that goes.
                    for done in &moved {
                        if done.from != done.to
                            && let Some(device) = self.host.device(done.address)
                            && let Err(error) = self.to_driver(&device)
                        {
                            log::warn!("{} stays VFIO's: {error}", done.address);
                        }
                    }
                    // The one that failed has lost its driver at least.
                    let _ = self.to_driver(member);
                    return Err(error);
                }
            }
        }
        Ok(moved)
    }

    /// Gives a device and all of its group back to their drivers. Where the kernel has none for one of them, it has none.
    ///
    /// # Errors
    /// When one of them is in use, or the kernel does not do it.
    pub fn unbind(&self, address: HostAddress) -> Result<Vec<Moved>, Error> {
        let device = self.device(address)?;
        let together = self.together(&device).map_err(|source| Error::Read {
            path: device.path().join("iommu_group"),
            source,
        })?;
        let is_vfio = |device: &Device| device.driver().as_deref() == Some(VFIO_PCI);
        if let Some(group) = device.group()
            && together.iter().any(is_vfio)
            && self.is_in_use(group)
        {
            return Err(Error::InUse { address, group });
        }
        let moved = together.iter().map(|member| {
            let from = member.driver();
            if is_vfio(member) || is_overridden(member) {
                self.to_driver(member)?;
            }
            Ok(Moved {
                address: member.address,
                from,
                to: member.driver(),
            })
        });
        moved.collect()
    }

    /// Gives one device to VFIO; says what its driver was.
    fn to_vfio(&self, device: &Device) -> Result<Option<String>, Error> {
        let from = device.driver();
        if from.as_deref() == Some(VFIO_PCI) {
            return Ok(from);
        }
        write(device, "driver_override", VFIO_PCI)?;
        if from.is_some() {
            write(device, "driver/unbind", &device.address.to_string())?;
        }
        self.probe(device)?;
        match device.driver() {
            Some(driver) if driver == VFIO_PCI => Ok(from),
            found => Err(Error::NotMoved {
                address: device.address,
                wanted: "VFIO's",
                found: Driver(found),
            }),
        }
    }

    /// Gives one device back.
    fn to_driver(&self, device: &Device) -> Result<(), Error> {
        write(device, "driver_override", "\n")?;
        if device.driver().as_deref() == Some(VFIO_PCI) {
            write(device, "driver/unbind", &device.address.to_string())?;
        }
        if device.driver().is_none() {
            self.probe(device)?;
        }
        Ok(())
    }

    /// Has the kernel look for a driver.
    fn probe(&self, device: &Device) -> Result<(), Error> {
        let path = self.host.root().join("bus/pci/drivers_probe");
        match fs::write(&path, device.address.to_string()) {
            Ok(()) => Ok(()),
            // So it says when there is no driver for it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Err(source) => Err(Error::Write { path, source }),
        }
    }

    /// Whether a process has the group, or a device of it.
    fn is_in_use(&self, group: u32) -> bool {
        let node = self.path(&format!("dev/vfio/{group}"));
        let opened = fs::File::options().read(true).write(true).open(node);
        opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Whether its driver was chosen by name.
fn is_overridden(device: &Device) -> bool {
    device.attribute("driver_override").as_deref() == Some(VFIO_PCI)
}

fn write(device: &Device, name: &str, value: &str) -> Result<(), Error> {
    let path = device.path().join(name);
    fs::write(&path, value).map_err(|source| Error::Write { path, source })
}
