//! Eventfds that become messages to the guest's processors, each while there is a message for it.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Gsi, Msi, MsiMessage};

/// A function's vectors. Without a message an event keeps what its device signals, and KVM delivers that when there is one.
pub struct Vectors {
    msi: Arc<dyn Msi>,
    vectors: Vec<Vector>,
}

struct Vector {
    event: Arc<EventFd>,
    attached: Option<(Gsi, MsiMessage)>,
}

impl Vectors {
    /// `count` vectors without messages.
    ///
    /// # Errors
    /// When an eventfd cannot be had.
    pub fn new(msi: Arc<dyn Msi>, count: usize) -> std::io::Result<Self> {
        let vector = |_| {
            let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
            Ok(Vector {
                event,
                attached: None,
            })
        };
        let vectors = (0..count).map(vector).collect::<std::io::Result<_>>()?;
        Ok(Vectors { msi, vectors })
    }

    /// The event that is a vector's interrupt.
    pub fn event(&self, index: usize) -> Option<&Arc<EventFd>> {
        self.vectors.get(index).map(|vector| &vector.event)
    }

    /// All of them, in order.
    pub fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.vectors.iter().map(|vector| &*vector.event)
    }

    /// From now on, a vector sends this message, or keeps what it has to say.
    pub fn set(&mut self, index: usize, wanted: Option<MsiMessage>) {
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let result = match (vector.attached, wanted) {
            (Some((gsi, _)), None) => {
                vector.attached = None;
                self.msi.detach(&vector.event, gsi)
            }
            (None, Some(message)) => self
                .msi
                .attach(&vector.event, message)
                .map(|gsi| vector.attached = Some((gsi, message))),
            (Some((gsi, current)), Some(message)) if current != message => self
                .msi
                .update(gsi, message)
                .map(|()| vector.attached = Some((gsi, message))),
            _ => Ok(()),
        };
        if let Err(error) = result {
            log::warn!("interrupt vector {index}: {error}");
        }
    }

    /// None of them has a message any more.
    pub fn silence(&mut self) {
        (0..self.vectors.len()).for_each(|index| self.set(index, None));
    }

    /// Whether a vector waits for a message.
    pub fn is_pending(&self, index: usize) -> bool {
        let vector = self.vectors.get(index);
        vector.is_some_and(|vector| vector.attached.is_none() && is_signalled(&vector.event))
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        self.silence();
    }
}

/// Whether an event waits, without taking it.
fn is_signalled(event: &EventFd) -> bool {
    let mut poll = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}
