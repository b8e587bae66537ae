//! What holds inside of a guest for the containers in it.

#[path = "../common/mod.rs"]
mod common;
mod memory;
mod seccomp;
