//! The devices that a guest sees.

pub mod virtio;
