//! Whether the guest's link is up: it is until the tap is gone, and then never again (virtio 1.2, 5.1.4: VIRTIO_NET_S_LINK_UP).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::devices::virtio::Interrupt;

/// The link's state, which is a part of the configuration space.
#[derive(Clone, Debug, Default)]
pub struct Link(Arc<AtomicBool>);

impl Link {
    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }

    /// The configuration space's generation: there is one change at most.
    pub fn generation(&self) -> u8 {
        u8::from(!self.is_up())
    }
}

/// The link as those see it who may find that the tap is gone, and tell the driver.
#[derive(Clone, Debug)]
pub struct Reporter {
    link: Link,
    tap: Arc<str>,
    config_changed: Interrupt,
}

impl Reporter {
    /// For the driver that is interrupted by `config_changed`.
    pub fn new(link: Link, tap: &str, config_changed: Interrupt) -> Self {
        Reporter {
            link,
            tap: tap.into(),
            config_changed,
        }
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// The tap is gone. Whoever finds out first tells the driver and the log.
    pub fn down(&self) {
        if !self.link.0.swap(true, Ordering::SeqCst) {
            log::warn!(
                "virtio-net: the tap {} is gone: the guest's link is down",
                self.tap
            );
            self.config_changed.trigger();
        }
    }
}
