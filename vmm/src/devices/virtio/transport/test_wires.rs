//! What KVM would be told of interrupts and kicks, written down instead.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Error, Gsi, IoEvents, Msi, MsiMessage};

/// The wires of a machine without KVM. Like KVM, they refuse what is there already and what is not.
#[derive(Default)]
pub struct Wires {
    /// By descriptor.
    pub irqs: Mutex<BTreeMap<i32, MsiMessage>>,
    /// By address.
    pub kicks: Mutex<BTreeMap<u64, i32>>,
}

impl Wires {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Where kicks are taken.
    pub fn kicks_at(&self) -> Vec<u64> {
        self.kicks.lock().unwrap().keys().copied().collect()
    }
}

impl Msi for Wires {
    fn attach(&self, fd: &EventFd, message: MsiMessage) -> Result<Gsi, Error> {
        let before = self.irqs.lock().unwrap().insert(fd.as_raw_fd(), message);
        assert_eq!(before, None, "attached twice");
        Ok(Gsi::new(fd.as_raw_fd() as u32))
    }

    fn update(&self, _: Gsi, _: MsiMessage) -> Result<(), Error> {
        Ok(())
    }

    fn detach(&self, fd: &EventFd, gsi: Gsi) -> Result<(), Error> {
        assert_eq!(gsi, Gsi::new(fd.as_raw_fd() as u32));
        let message = self.irqs.lock().unwrap().remove(&fd.as_raw_fd());
        assert!(message.is_some(), "detached without being attached");
        Ok(())
    }

    fn vm_ends(&self) {}
}

impl IoEvents for Wires {
    fn add(&self, fd: &EventFd, address: u64) -> Result<(), Error> {
        let before = self.kicks.lock().unwrap().insert(address, fd.as_raw_fd());
        assert_eq!(before, None, "two kicks at {address:#x}");
        Ok(())
    }

    fn remove(&self, fd: &EventFd, address: u64) -> Result<(), Error> {
        let before = self.kicks.lock().unwrap().remove(&address);
        assert_eq!(before, Some(fd.as_raw_fd()), "no such kick at {address:#x}");
        Ok(())
    }
}
