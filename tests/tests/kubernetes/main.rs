//! Orlop in a real cluster: a kubelet runs the pods, and people and controllers ask for them through the API server.
//!
//! `cargo testbed test kubernetes` starts the cluster, as `cargo testbed test --all` does; each story has a namespace of its own there.

mod access;
mod allocation;
mod behaviours;
mod configuration;
mod devices;
mod lives;
mod node;
mod resources;
mod stage;
mod starts;
mod storage;
mod workloads;
