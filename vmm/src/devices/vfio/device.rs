//! A device of the host's, opened: it is the VM's from now on, in all lives of its guest, and is reset when that begins and when it ends.

use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use vfio_bindings::bindings::vfio as sys;

use super::error::Error;
use super::given::{self, Given};
use super::ioctl::{DeviceFile, Region};
use super::recall::{OnRecall, Recall};
use super::space::{Opened, Space};
use super::sysfs::Host;
use crate::config::{HostAddress, HostDeviceConfig};
use crate::pci::{Bar, BarIndex};

/// Opens a VM's devices, all in one address space.
pub struct Passage {
    host: Host,
    space: Weak<Space>,
    opened: Vec<(HostAddress, Weak<DeviceFile>)>,
    on_recall: OnRecall,
}

impl Passage {
    /// One by which nothing is opened yet; `on_recall` hears which device the host wants back.
    pub fn new(on_recall: impl Fn(HostAddress) + Send + Sync + 'static) -> Self {
        Passage {
            host: Host::default(),
            space: Weak::default(),
            opened: Vec::new(),
            on_recall: Arc::new(on_recall),
        }
    }

    /// Opens several, or none. What of them was handed over is closed but for what the devices have of it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_all<D: From<Device>>(
        &mut self,
        configs: &[HostDeviceConfig],
    ) -> Result<Vec<D>, Error> {
        let opened = configs.iter().map(|config| self.open(config).map(D::from));
        let opened = opened.collect::<Result<_, _>>()?;
        given::close(configs.iter().map(|config| &config.files));
        Ok(opened)
    }

    /// Opens a device, and resets it.
    ///
    /// # Errors
    /// When it is not there, is somebody else's, or is not VFIO's; see [`Error`].
    pub fn open(&mut self, config: &HostDeviceConfig) -> Result<Device, Error> {
        let address = config.address;
        let found = self.host.device(address);
        let found = found.ok_or(Error::NotThere(address))?;
        self.opened.retain(|(_, file)| file.strong_count() > 0);
        if self.opened.iter().any(|(other, _)| *other == address) {
            return Err(Error::Twice(address));
        }
        let mut given = Given::of(config.files, &self.host, &found)?;
        let space = match self.space.upgrade() {
            Some(space) => space,
            None => Arc::new(Space::for_device(&found, given.as_mut())?),
        };
        let opened = space.open(&self.host, &found, given)?;
        let mut device = Device::new(config, opened, space)?;
        device.recall = Recall::listen(address, &device.opened.file, self.on_recall.clone());
        self.space = Arc::downgrade(&device.space);
        let file = Arc::downgrade(&device.opened.file);
        self.opened.push((address, file));
        Ok(device)
    }
}

/// A device.
#[derive(Debug)]
pub struct Device {
    address: HostAddress,
    id: Option<String>,
    recall: Option<Recall>,
    /// Closed before the address space is.
    opened: Opened,
    space: Arc<Space>,
    resets: bool,
    config: Region,
    /// By their BARs' numbers; of no size where there is none.
    regions: [Region; BarIndex::COUNT],
    interrupts: Interrupts,
}

/// How many interrupts a device has, by kind.
#[derive(Clone, Copy, Debug)]
pub struct Interrupts {
    /// Whether it has a line.
    pub line: bool,
    /// Messages (MSI).
    pub msi: u32,
    /// Messages in a table (MSI-X).
    pub msix: u32,
}

impl Device {
    fn new(config: &HostDeviceConfig, opened: Opened, space: Arc<Space>) -> Result<Self, Error> {
        let address = config.address;
        let refused = |what| {
            move |source| Error::Refused {
                what,
                address,
                source,
            }
        };
        let file = &opened.file;
        let info = file.info().map_err(refused("look at"))?;
        if !info.is_pci {
            return Err(Error::NotPci(address));
        }
        let region = |index| file.region(index).map_err(refused("look at a region of"));
        let interrupts = |index| {
            file.interrupts(index)
                .map_err(refused("look at the interrupts of"))
        };
        let config_region = region(sys::VFIO_PCI_CONFIG_REGION_INDEX)?;
        let regions = [
            region(sys::VFIO_PCI_BAR0_REGION_INDEX)?,
            region(sys::VFIO_PCI_BAR1_REGION_INDEX)?,
            region(sys::VFIO_PCI_BAR2_REGION_INDEX)?,
            region(sys::VFIO_PCI_BAR3_REGION_INDEX)?,
            region(sys::VFIO_PCI_BAR4_REGION_INDEX)?,
            region(sys::VFIO_PCI_BAR5_REGION_INDEX)?,
            region(sys::VFIO_PCI_ROM_REGION_INDEX)?,
        ];
        let interrupts = Interrupts {
            line: interrupts(sys::VFIO_PCI_INTX_IRQ_INDEX)? > 0,
            msi: interrupts(sys::VFIO_PCI_MSI_IRQ_INDEX)?,
            msix: interrupts(sys::VFIO_PCI_MSIX_IRQ_INDEX)?,
        };
        let device = Device {
            address,
            id: config.id.clone(),
            recall: None,
            opened,
            space,
            resets: info.resets,
            config: config_region,
            regions,
            interrupts,
        };
        if !device.resets {
            log::warn!(
                "{address} cannot be reset by itself: what a guest leaves in it, the next one finds"
            );
        }
        device.reset();
        log::info!("{address} is the VM's, by VFIO's {}", device.space.name());
        Ok(device)
    }

    /// Where it is on the host.
    pub fn address(&self) -> HostAddress {
        self.address
    }

    /// What its user calls it: by its address where there is no other name.
    pub fn name(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.address.to_string())
    }

    /// The address space that it reaches memory in.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// What KVM is to be told of.
    pub fn for_kvm(&self) -> RawFd {
        self.opened.for_kvm()
    }

    /// Its file.
    pub fn file(&self) -> &Arc<DeviceFile> {
        &self.opened.file
    }

    /// What is behind a BAR.
    pub fn region(&self, bar: BarIndex) -> &Region {
        let [first, ..] = &self.regions;
        // There is one for each.
        self.regions.get(bar.get()).unwrap_or(first)
    }

    /// Its configuration space's size in bytes.
    pub fn config_size(&self) -> usize {
        usize::try_from(self.config.size).unwrap_or(usize::MAX)
    }

    /// How many interrupts it has.
    pub fn interrupts(&self) -> Interrupts {
        self.interrupts
    }

    /// Reads its configuration space; ones where it cannot be read.
    pub fn read_config(&self, at: usize, data: &mut [u8]) {
        let read = self.opened.file.read(&self.config, at as u64, data);
        if let Err(error) = read {
            log::warn!("{}: configuration space at {at:#x}: {error}", self.address);
        }
    }

    /// Writes its configuration space.
    pub fn write_config(&self, at: usize, data: &[u8]) {
        let written = self.opened.file.write(&self.config, at as u64, data);
        if let Err(error) = written {
            log::warn!("{}: configuration space at {at:#x}: {error}", self.address);
        }
    }

    /// Reads a BAR; ones where it cannot be read.
    pub fn read(&self, bar: BarIndex, at: u64, data: &mut [u8]) {
        if let Err(error) = self.opened.file.read(self.region(bar), at, data) {
            log::warn!("{}: BAR {} at {at:#x}: {error}", self.address, bar.get());
        }
    }

    /// Writes a BAR.
    pub fn write(&self, bar: BarIndex, at: u64, data: &[u8]) {
        if let Err(error) = self.opened.file.write(self.region(bar), at, data) {
            log::warn!("{}: BAR {} at {at:#x}: {error}", self.address, bar.get());
        }
    }

    /// Resets it, if it can be, and leaves it so that it answers and does nothing by itself.
    pub fn reset(&self) {
        if self.resets
            && let Err(error) = self.opened.file.reset()
        {
            log::warn!("{} cannot be reset: {error}", self.address);
        }
        // Its BARs answer; it has no way to memory before its guest gives it one.
        self.write_config(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }

    /// The BARs as a guest is to see them.
    pub fn bars(&self) -> Vec<Bar> {
        super::config_space::bars(self)
    }
}

/// The command register (PCI Express 6.0, 7.5.1.1.3).
const COMMAND: usize = 4;
const COMMAND_MEMORY: u16 = 1 << 1;

impl super::config_space::Real for Device {
    fn size(&self) -> usize {
        self.config_size()
    }

    fn region_size(&self, bar: BarIndex) -> u64 {
        self.region(bar).size
    }

    fn read(&self, at: usize, data: &mut [u8]) {
        self.read_config(at, data);
    }

    fn write(&self, at: usize, data: &[u8]) {
        self.write_config(at, data);
    }
}
