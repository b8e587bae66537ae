//! How a device reaches its driver: interrupts, and the fault that asks for a reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::error;

/// DEVICE_NEEDS_RESET in the device status (virtio 1.2, 2.1).
pub const STATUS_NEEDS_RESET: u8 = 64;

/// One interrupt of a device: an eventfd that KVM turns into an MSI-X message.
///
/// While the driver has the vector masked, the eventfd keeps the event, and KVM delivers it when the vector is unmasked.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    fd: Option<Arc<EventFd>>,
}

impl Interrupt {
    /// An interrupt that signals `fd`.
    pub fn new(fd: Arc<EventFd>) -> Self {
        Interrupt { fd: Some(fd) }
    }

    /// For a driver that asked for none (VIRTIO_MSI_NO_VECTOR): triggering it does nothing.
    pub fn none() -> Self {
        Interrupt { fd: None }
    }

    /// Interrupts the driver.
    pub fn trigger(&self) {
        if let Some(fd) = &self.fd {
            // The only failure is a counter that is full, and then an event is pending anyway.
            let _ = fd.write(1);
        }
    }

    /// The eventfd, for a backend that signals it without us.
    pub fn fd(&self) -> Option<&EventFd> {
        self.fd.as_deref()
    }
}

/// The way out when the guest broke the rules: the device is marked as needing a reset, and the driver is told by the
/// configuration interrupt.
#[derive(Clone, Debug)]
pub struct Fault {
    device: &'static str,
    status: Arc<AtomicU8>,
    config_changed: Interrupt,
}

impl Fault {
    /// A fault line for the device called `device` that sets a bit of `status` and triggers `config_changed`.
    pub fn new(device: &'static str, status: Arc<AtomicU8>, config_changed: Interrupt) -> Self {
        Fault {
            device,
            status,
            config_changed,
        }
    }

    /// Says that the device has stopped because of `reason`. A fault that is raised already stays as it is, so a guest can
    /// cause one line of log for each reset that it does, and no more; how many of those are said is up to the logger.
    pub fn raise(&self, reason: &dyn std::error::Error) {
        let before = self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst);
        if before & STATUS_NEEDS_RESET == 0 {
            log::warn!(
                "{}: the guest must reset this device: {}",
                self.device,
                error::line(reason)
            );
            self.config_changed.trigger();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_raised_once_until_the_status_is_cleared() {
        let status = Arc::new(AtomicU8::new(15));
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let fault = Fault::new("test", status.clone(), Interrupt::new(event.clone()));
        let reason = std::io::Error::other("ring outside RAM");
        fault.raise(&reason);
        fault.raise(&reason);
        assert_eq!(status.load(Ordering::SeqCst), 15 | STATUS_NEEDS_RESET);
        assert_eq!(event.read().unwrap(), 1, "one configuration interrupt");
    }
}
