//! The devices that a guest sees.

pub mod console;
pub mod cpu_hotplug;
pub mod pci_hotplug;
pub mod power;
pub mod pvpanic;
pub mod vfio;
pub mod virtio;
