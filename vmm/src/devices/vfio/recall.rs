//! The host wants a device back. Whoever takes a device off the host's bus, or its driver from it, waits in the kernel until this process
//! has closed it; meanwhile VFIO signals every ten seconds that it should.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::ioctl::DeviceFile;
use crate::config::HostAddress;
use crate::devices::virtio::worker::{Wake, Worker};

/// Hears which device the host wants back, as often as the host says so.
pub type OnRecall = Arc<dyn Fn(HostAddress) + Send + Sync>;

/// Listens for the host's wish, as long as it is there.
#[derive(Debug)]
pub struct Recall {
    _listener: Worker<()>,
}

impl Recall {
    /// Listens for what is wished of a device; `None` where it cannot be heard, which its user has no other harm of.
    pub fn listen(address: HostAddress, file: &DeviceFile, on_recall: OnRecall) -> Option<Self> {
        match Self::try_listen(address, file, on_recall) {
            Ok(recall) => recall,
            Err(error) => {
                log::warn!("{address} stays the VM's even if the host wants it back: {error}");
                None
            }
        }
    }

    fn try_listen(
        address: HostAddress,
        file: &DeviceFile,
        on_recall: OnRecall,
    ) -> Result<Option<Self>, Box<dyn std::error::Error>> {
        const WISH: u64 = 0;
        if file.interrupts(sys::VFIO_PCI_REQ_IRQ_INDEX)? == 0 {
            return Ok(None);
        }
        let wish = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        file.trigger(sys::VFIO_PCI_REQ_IRQ_INDEX, &[wish.as_raw_fd()])?;
        let listener = Worker::spawn("vfio-recall", move |events| {
            if let Err(error) = events.add(&wish, EventSet::IN, WISH) {
                log::warn!("{address}: {error}");
                return;
            }
            loop {
                for wake in events.wait(-1) {
                    match wake {
                        Wake::Stop => return,
                        Wake::Ready(..) => {
                            // It is non-blocking, and has nothing to say but that it happened.
                            let _ = wish.read();
                            on_recall(address);
                        }
                    }
                }
            }
        })?;
        Ok(Some(Recall {
            _listener: listener,
        }))
    }
}
