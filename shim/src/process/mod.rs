//! Processes of this machine: starting them so that none outlives the shim, watching them, and naming one so that a
//! recycled number is never mistaken for it.

pub mod identity;
pub mod pidfd;
pub mod spawn;
