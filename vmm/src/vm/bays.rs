//! Where a machine's devices are: in place when the guest boots, and coming and going while it runs.
//!
//! A device that comes is on the bus before the guest is told. One that is to go stays until the guest has let go of it, which is up to
//! the guest: those who wait for that are answered then.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::oneshot;
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use crate::config::HostAddress;
use crate::control::{Done, EndOfLife, Refusal};
use crate::devices::pci_hotplug::PciHotplug;
use crate::devices::vfio::{self, Ground, VfioPci};
use crate::devices::virtio::transport::pci::VirtioPci;
use crate::devices::virtio::{self, GuestMemory};
use crate::irq::{IoEvents, Msi};
use crate::pci::{self, DeviceNumber, Function, FunctionNumber, Released};

/// What devices need of a machine.
#[derive(Clone)]
pub(super) struct Wiring {
    pub ram: Arc<GuestMemory>,
    pub msi: Arc<dyn Msi>,
    pub ioevents: Arc<dyn IoEvents>,
    /// For devices of the host's; a machine without KVM, as tests have, has none.
    pub ground: Option<Arc<Ground>>,
}

/// A machine's places for devices.
pub(super) struct Bays {
    bus: Arc<pci::Root>,
    wiring: Wiring,
    hotplug: Arc<PciHotplug>,
    /// The last place for a device that comes.
    last: DeviceNumber,
    /// Where devices of the host's are.
    of_host: BTreeMap<HostAddress, DeviceNumber>,
    /// Who waits for which device to be gone.
    leaving: BTreeMap<DeviceNumber, Vec<oneshot::Sender<()>>>,
}

/// A device that is in no machine just now.
pub(super) struct Idle {
    device: Released,
    /// Where it was in the last machine, and is to be in the next: whoever was told its address knows it by that.
    place: Option<FunctionNumber>,
}

impl<D: virtio::Device + 'static> From<D> for Idle {
    /// One that was in no machine yet.
    fn from(device: D) -> Self {
        Idle {
            device: Released::Virtio(Box::new(device)),
            place: None,
        }
    }
}

impl From<vfio::Device> for Idle {
    fn from(device: vfio::Device) -> Self {
        Idle {
            device: Released::Host(Box::new(device)),
            place: None,
        }
    }
}

impl Idle {
    /// How much room its BARs of 64 bits want above all memory, in bytes.
    pub fn room64(&self) -> u64 {
        match &self.device {
            Released::Virtio(_) => 0,
            Released::Host(device) => {
                let bars = device.bars().into_iter();
                let large = bars.filter(|bar| bar.bits == pci::Bits::SixtyFour);
                large.map(|bar| bar.size).fold(0, u64::saturating_add)
            }
        }
    }
}

/// A device that the guest has let go of.
pub struct Ejected {
    /// Where it was.
    pub number: DeviceNumber,
    /// They may work still.
    pub functions: Vec<Box<dyn Function>>,
}

impl fmt::Debug for Ejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ejected({})", self.number)
    }
}

impl Bays {
    /// Places for the devices of the guest's life that `end` is of; `event` tells the guest of what comes and goes, at places up to `last`.
    /// BARs of 64 bits can be in `window64`.
    pub fn new(
        wiring: Wiring,
        window64: Range<u64>,
        event: EventFd,
        last: DeviceNumber,
        end: &EndOfLife,
    ) -> Self {
        let bus = Arc::new(pci::Root::with_window64(window64));
        let end = end.clone();
        let on_eject = Box::new(move |number, functions| end.eject(Ejected { number, functions }));
        Bays {
            hotplug: Arc::new(PciHotplug::new(bus.clone(), event, on_eject)),
            bus,
            wiring,
            last,
            of_host: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// The bus.
    pub fn bus(&self) -> &Arc<pci::Root> {
        &self.bus
    }

    /// Whether any of the devices is the host's.
    pub fn has_host_devices(&self) -> bool {
        let ground = self.wiring.ground.as_ref();
        ground.is_some_and(|ground| ground.has_devices())
    }

    /// The registers of the guest's side.
    pub fn registers(&self) -> Arc<PciHotplug> {
        self.hotplug.clone()
    }

    /// Puts devices in place, for a guest that does not run yet. The host's that are functions of one slot there are of one here.
    pub fn fill(&mut self, idle: impl IntoIterator<Item = Idle>) -> Result<(), Error> {
        let mut slots = BTreeMap::new();
        for Idle { device, place } in idle {
            let address = address_of(&device);
            let sibling = address.and_then(|address| {
                let first: &DeviceNumber = slots.get(&address.slot())?;
                let number = u64::from(address.function());
                Some(FunctionNumber::from_bits(*first, number))
            });
            // Function 0 of a slot is there whenever any is.
            let sibling = sibling.filter(|sibling| sibling.get() != 0);
            let number = self.bus.add(self.function(device)?, place.or(sibling))?;
            if let Some(address) = address {
                slots.entry(address.slot()).or_insert(number.device());
                self.of_host.insert(address, number.device());
            }
        }
        Ok(())
    }

    /// Takes all devices from their places. To be called when no vCPU runs any more.
    pub fn empty(&self) -> Vec<Idle> {
        self.wiring.msi.vm_ends();
        self.bus.stop();
        let released = self.bus.release().into_iter();
        released
            .map(|(number, device)| Idle {
                device,
                place: Some(number),
            })
            .collect()
    }

    /// Puts a device in place and tells the guest.
    pub fn plug(&mut self, device: Released) -> Result<DeviceNumber, Error> {
        let address = address_of(&device);
        let number = self.bus.plug(self.function(device)?, self.last)?;
        if let Some(address) = address {
            self.of_host.insert(address, number);
        }
        self.hotplug.announce(number);
        Ok(number)
    }

    fn function(&self, device: Released) -> Result<Box<dyn Function>, Error> {
        let Wiring {
            ram,
            msi,
            ioevents,
            ground,
        } = self.wiring.clone();
        Ok(match device {
            Released::Virtio(device) => Box::new(VirtioPci::new(device, ram, msi, ioevents)?),
            Released::Host(device) => {
                let ground = ground.ok_or(vfio::Error::NoMachine)?;
                Box::new(VfioPci::new(device, &ground)?)
            }
        })
    }

    /// Asks the guest to let go of a device.
    ///
    /// # Errors
    /// [`Refusal::NoDevice`] when none is there.
    pub fn ask_for(&mut self, number: DeviceNumber) -> Result<Done, Refusal> {
        if number == DeviceNumber::HOST_BRIDGE || !self.bus.has(number) {
            return Err(Refusal::NoDevice(number));
        }
        let waiting = self.leaving.entry(number).or_default();
        // Those that have given up wait no more.
        waiting.retain(|tell| !tell.is_closed());
        let (tell, done) = oneshot::channel();
        waiting.push(tell);
        self.hotplug.ask_for(number);
        Ok(done)
    }

    /// The host wants a device back: the guest is asked to let go of it. A guest that stands still hears of it when it goes on.
    pub fn recall(&self, address: HostAddress) {
        if let Some(number) = self.of_host.get(&address) {
            log::warn!("the host wants {address} back: the guest is to let go of it at {number}");
            self.hotplug.ask_for(*number);
        }
    }

    /// The guest has let go of a device, whether it was asked to or not: the device ends.
    pub fn ejected(&mut self, ejected: Ejected) {
        let Ejected {
            number,
            mut functions,
        } = ejected;
        functions.iter_mut().for_each(|function| function.stop());
        drop(functions);
        self.of_host.retain(|_, place| *place != number);
        for tell in self.leaving.remove(&number).into_iter().flatten() {
            // One that has gone does not hear it.
            let _ = tell.send(());
        }
    }
}

/// Where it is on the host, if it is the host's.
fn address_of(device: &Released) -> Option<HostAddress> {
    match device {
        Released::Virtio(_) => None,
        Released::Host(device) => Some(device.address()),
    }
}
