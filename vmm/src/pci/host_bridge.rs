//! The host bridge: device 0 of every root, so that a guest that probes finds a bus.

use super::config_space::{self, ConfigSpace};
use super::{Bar, BarIndex, Function, Identity, Released};

/// Configuration space, and nothing behind it.
pub(super) struct HostBridge(ConfigSpace);

impl HostBridge {
    pub(super) fn new() -> Self {
        // The ids are those of a bridge that Linux knows and has no quirks for: Red Hat's generic PCIe host.
        HostBridge(ConfigSpace::new(config_space::Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
        }))
    }
}

impl Function for HostBridge {
    fn read_config(&mut self, at: usize, data: &mut [u8]) {
        self.0.read(at, data);
    }

    fn write_config(&mut self, at: usize, data: &[u8]) {
        self.0.write(at, data);
    }

    fn bars(&self) -> &[Bar] {
        &[]
    }

    fn assign_bar(&mut self, _: BarIndex, _: u64) {}

    fn bar(&self, _: BarIndex) -> Option<u64> {
        None
    }

    fn place(&mut self, _: BarIndex, _: Option<u64>) {}

    fn read(&mut self, _: BarIndex, _: u64, _: &mut [u8]) {}

    fn write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}

    fn describe(&self) -> Option<Identity> {
        None
    }

    fn stop(&mut self) {}

    fn release(self: Box<Self>) -> Option<Released> {
        None
    }
}
