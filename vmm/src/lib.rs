//! The Orlop VMM: one KVM guest per process.
//!
//! [`config`] says what is wanted; [`vm`] builds it and runs it to its end; [`control`] is the one place that changes a running VM.
//! What a guest does reaches [`vcpu`] as an exit and goes on to a device by [`bus`], or never leaves the kernel ([`irq`]).

pub mod arch;
pub mod boot;
pub mod bus;
pub mod config;
pub mod control;
pub mod devices;
pub mod error;
pub mod host_pci;
pub mod irq;
pub mod memory;
pub mod oci;
pub mod pci;
pub mod signals;
pub mod socket;
pub mod state;
pub mod terminal;
pub mod vcpu;
pub mod vm;
