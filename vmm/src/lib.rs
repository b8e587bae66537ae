//! The Orlop VMM: one KVM guest per process.

pub mod devices;
