//! What holds inside of a guest for the containers in it.

mod agent;
mod clock;
#[path = "../common/mod.rs"]
mod common;
#[path = "../guest/mod.rs"]
mod guest;
mod hardship;
mod memory;
mod runtime_spec;
mod seccomp;
mod stats;
