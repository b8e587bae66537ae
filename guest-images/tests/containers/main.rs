//! The agent's containers, end to end on unix sockets: the same service as in a guest, run as root in namespaces of its own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking; clippy's own exception does not reach functions that tests call"
)]

mod harness;
mod lifecycle;
mod network;
mod seccomp;
mod streams;
