//! The devices that a guest sees.

pub mod console;
pub mod power;
pub mod pvpanic;
pub mod virtio;
