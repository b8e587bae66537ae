//! What devices of the host's need of a guest's machine: its memory, which they reach from the first of them to the last, its KVM, and its
//! interrupts. Each life of the guest has another.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvm_bindings::{
    KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, KVM_DEV_VFIO_GROUP_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::device::Device;
use super::error::Error;
use crate::irq::{Lines, Msi};
use crate::memory::dma::{NotReached, Reached};
use crate::memory::slots::Slots;
use crate::memory::{self, GuestMemory};

/// A machine, for its devices of the host's.
pub struct Ground {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// The guest's memory.
    pub ram: Arc<GuestMemory>,
    /// Numbers for BARs as memory.
    pub slots: Arc<Slots>,
    /// Messages.
    pub msi: Arc<dyn Msi>,
    /// Interrupt lines; `None` where the guest's firmware tells of none.
    pub lines: Option<Arc<dyn Lines>>,
    shared: Mutex<Shared>,
}

/// What the devices have together.
#[derive(Default)]
struct Shared {
    reached: Weak<Reached>,
    kvm: Option<DeviceFd>,
    /// The files that KVM knows, and how many devices each stands for.
    known: BTreeMap<RawFd, usize>,
}

/// A device that stands on a machine's ground.
pub struct Footing {
    ground: Arc<Ground>,
    file: RawFd,
    /// The memory that it reaches.
    pub reached: Arc<Reached>,
}

impl Ground {
    /// That of a machine.
    pub fn new(
        vm: Arc<VmFd>,
        ram: Arc<GuestMemory>,
        slots: Arc<Slots>,
        msi: Arc<dyn Msi>,
        lines: Option<Arc<dyn Lines>>,
    ) -> Self {
        Ground {
            vm,
            ram,
            slots,
            msi,
            lines,
            shared: Mutex::default(),
        }
    }

    /// Lets a device reach the guest's memory, and tells KVM of it.
    ///
    /// # Errors
    /// When the memory cannot be pinned, or KVM refuses.
    pub fn enter(self: &Arc<Self>, device: &Device) -> Result<Footing, Error> {
        let mut shared = self.shared();
        let reached = match shared.reached.upgrade() {
            Some(reached) => reached,
            None => Arc::new(self.reach(device)?),
        };
        let file = device.for_kvm();
        let count = shared.known.get(&file).copied().unwrap_or(0);
        if count == 0 {
            if shared.kvm.is_none() {
                shared.kvm = Some(self.create().map_err(Error::Kvm)?);
            }
            shared
                .tell(KVM_DEV_VFIO_GROUP_ADD, file)
                .map_err(Error::Kvm)?;
        }
        shared.known.insert(file, count + 1);
        shared.reached = Arc::downgrade(&reached);
        drop(shared);
        Ok(Footing {
            ground: self.clone(),
            file,
            reached,
        })
    }

    /// Whether any device stands on it.
    pub fn has_devices(&self) -> bool {
        !self.shared().known.is_empty()
    }

    fn reach(&self, device: &Device) -> Result<Reached, Error> {
        memory::raise_lock_limit();
        let reached = Reached::all(self.ram.clone(), device.space().clone());
        let reached =
            reached.map_err(
                |NotReached { start, len, source }| match source.raw_os_error() {
                    Some(libc::ENOMEM) if memory::lock_limit().is_some() => Error::MemoryLimit {
                        mib: memory::size(&self.ram) >> 20,
                    },
                    _ => Error::Map { start, len, source },
                },
            )?;
        log::warn!(
            "{} MiB of the guest's memory stay in the host's while it has a device of the host's: nothing is given back, and a balloon has no effect",
            reached.bytes() >> 20
        );
        Ok(reached)
    }

    /// What KVM is told of devices by.
    fn create(&self) -> Result<DeviceFd, kvm_ioctls::Error> {
        self.vm.create_device(&mut kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            fd: 0,
            flags: 0,
        })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn tell(&self, what: u32, file: RawFd) -> Result<(), kvm_ioctls::Error> {
        let Some(kvm) = &self.kvm else {
            return Ok(());
        };
        kvm.set_device_attr(&kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_GROUP,
            attr: what.into(),
            addr: std::ptr::from_ref(&file) as u64,
        })
    }
}

impl Drop for Footing {
    fn drop(&mut self) {
        let mut shared = self.ground.shared();
        match shared.known.get_mut(&self.file) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                shared.known.remove(&self.file);
                if let Err(error) = shared.tell(KVM_DEV_VFIO_GROUP_DEL, self.file) {
                    log::warn!("KVM does not forget a device of the host's: {error}");
                }
            }
        }
    }
}
