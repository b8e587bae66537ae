//! Interrupts and kicks that never leave the kernel: irqfds with their routes, and ioeventfds.
//!
//! KVM takes its routes as one table, replaced as a whole. [`Routes`] keeps the table; a device's message gets an entry when it is
//! first unmasked ([`Msi::attach`]), because each replacement costs a grace period of the host's kernel. So does each wire that is taken back; when
//! the VM ends, KVM drops all of them at once ([`Msi::vm_ends`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::layout::FIRST_MSI_GSI;

/// Why an interrupt or a kick could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM did not take it.
    #[error("KVM did not take {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// There are more routes than KVM's table has room for.
    #[error("no interrupt route is free")]
    Exhausted,
}

/// A message-signalled interrupt, as a device's MSI-X table holds it (PCI Express 6.0, 7.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the message is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// KVM's number of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gsi(u32);

impl Gsi {
    /// For tests without KVM.
    pub fn new(number: u32) -> Self {
        Gsi(number)
    }
}

/// Turns eventfds into messages to the guest's processors.
pub trait Msi: Send + Sync {
    /// From now on, `fd` sends `message`; at once, if it is signalled already.
    ///
    /// # Errors
    /// When KVM does not take it; then nothing has changed.
    fn attach(&self, fd: &EventFd, message: MsiMessage) -> Result<Gsi, Error>;
    /// The eventfd behind `gsi` sends another message.
    ///
    /// # Errors
    /// When KVM does not take it.
    fn update(&self, gsi: Gsi, message: MsiMessage) -> Result<(), Error>;
    /// `fd` keeps its signals for itself again, and `gsi` is free.
    ///
    /// # Errors
    /// When KVM does not know it.
    fn detach(&self, fd: &EventFd, gsi: Gsi) -> Result<(), Error>;
    /// No vCPU runs any more, and the VM is about to be let go of with all that is wired in it, lines and kicks as well: nothing need be taken back.
    fn vm_ends(&self);
}

/// Turns eventfds into interrupt lines that stay raised until the guest has served them.
pub trait Lines: Send + Sync {
    /// From now on, `fd` raises pin `gsi` of the IOAPIC, and `served` is signalled when the guest has served that, whoever raised it.
    ///
    /// # Errors
    /// When KVM does not take it.
    fn connect(&self, fd: &EventFd, served: &EventFd, gsi: u32) -> Result<(), Error>;
    /// Takes that back.
    ///
    /// # Errors
    /// When KVM does not know it.
    fn disconnect(&self, fd: &EventFd, gsi: u32) -> Result<(), Error>;
}

/// Turns a guest's writes into signals of eventfds.
pub trait IoEvents: Send + Sync {
    /// From now on, a write of any size to guest-physical `address` signals `fd`, and goes nowhere else.
    ///
    /// # Errors
    /// When KVM does not take it.
    fn add(&self, fd: &EventFd, address: u64) -> Result<(), Error>;
    /// Takes that back.
    ///
    /// # Errors
    /// When KVM does not know it.
    fn remove(&self, fd: &EventFd, address: u64) -> Result<(), Error>;
}

/// The VM's table of routes.
pub struct Routes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<Gsi, MsiMessage>>,
    /// Whether the VM ends.
    ends: AtomicBool,
}

/// As many as KVM takes (`KVM_MAX_IRQ_ROUTES`), less the IOAPIC's pins.
const MAX_MESSAGES: usize = 4096 - FIRST_MSI_GSI as usize;

impl Routes {
    /// Routes the IOAPIC's pins, and no message yet.
    ///
    /// # Errors
    /// What KVM says.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, Error> {
        let routes = Routes {
            vm,
            messages: Mutex::default(),
            ends: AtomicBool::new(false),
        };
        routes.set(&BTreeMap::new())?;
        Ok(routes)
    }

    /// Takes something back, unless the VM ends.
    fn take_back(
        &self,
        what: &'static str,
        take: impl FnOnce(&VmFd) -> Result<(), kvm_ioctls::Error>,
    ) -> Result<(), Error> {
        if self.ends.load(Ordering::Relaxed) {
            return Ok(());
        }
        take(&self.vm).map_err(|error| Error::Kvm(what, error))
    }

    /// Replaces KVM's table.
    fn set(&self, messages: &BTreeMap<Gsi, MsiMessage>) -> Result<(), Error> {
        let pins = (0..FIRST_MSI_GSI).map(pin);
        let entries: Vec<_> = pins
            .chain(messages.iter().map(|(gsi, message)| entry(*gsi, *message)))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::Exhausted)?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(|e| Error::Kvm("the interrupt routes", e))
    }

    /// A route without its irqfd does nothing, and goes with the next change of KVM's table.
    fn forget(&self, gsi: Gsi) {
        self.messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&gsi);
    }

    /// Changes the table: all of it, or nothing when KVM refuses.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<Gsi, MsiMessage>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = messages.clone();
        let result = change(&mut changed)?;
        self.set(&changed)?;
        *messages = changed;
        Ok(result)
    }
}

impl Msi for Routes {
    fn attach(&self, fd: &EventFd, message: MsiMessage) -> Result<Gsi, Error> {
        let gsi = self.change(|messages| {
            let gsi = (FIRST_MSI_GSI..)
                .take(MAX_MESSAGES)
                .map(Gsi)
                .find(|gsi| !messages.contains_key(gsi))
                .ok_or(Error::Exhausted)?;
            messages.insert(gsi, message);
            Ok(gsi)
        })?;
        if let Err(error) = self.vm.register_irqfd(fd, gsi.0) {
            self.forget(gsi);
            return Err(Error::Kvm("an irqfd", error));
        }
        Ok(gsi)
    }

    fn update(&self, gsi: Gsi, message: MsiMessage) -> Result<(), Error> {
        self.change(|messages| {
            messages.insert(gsi, message);
            Ok(())
        })
    }

    fn detach(&self, fd: &EventFd, gsi: Gsi) -> Result<(), Error> {
        self.take_back("an irqfd's end", |vm| vm.unregister_irqfd(fd, gsi.0))?;
        self.forget(gsi);
        Ok(())
    }

    fn vm_ends(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

impl Lines for Routes {
    fn connect(&self, fd: &EventFd, served: &EventFd, gsi: u32) -> Result<(), Error> {
        self.vm
            .register_irqfd_with_resample(fd, served, gsi)
            .map_err(|e| Error::Kvm("an interrupt line", e))
    }

    fn disconnect(&self, fd: &EventFd, gsi: u32) -> Result<(), Error> {
        self.take_back("an interrupt line's end", |vm| vm.unregister_irqfd(fd, gsi))
    }
}

impl IoEvents for Routes {
    fn add(&self, fd: &EventFd, address: u64) -> Result<(), Error> {
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(|e| Error::Kvm("an ioeventfd", e))
    }

    fn remove(&self, fd: &EventFd, address: u64) -> Result<(), Error> {
        self.take_back("an ioeventfd's end", |vm| {
            vm.unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
        })
    }
}

/// A pin of the IOAPIC.
fn pin(number: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: number,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = number;
    entry
}

fn entry(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}
