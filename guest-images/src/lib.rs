//! The tools that make a guest's files: the kernel as an ELF file, and the initramfs.
//!
//! - [`bzimage`] takes the `vmlinux` out of the `vmlinuz` that a distribution packages, so that a VMM can enter it by PVH;
//! - [`modules`] finds out which kernel modules a guest needs, and in which order they load;
//! - [`signature`] takes the signatures off them, whose check would be a good part of a guest's start;
//! - [`kernel`] builds a kernel of our own, which needs no modules, from Linux' sources;
//! - [`cpio`] writes the archive format that the kernel unpacks at boot;
//! - [`initramfs`] puts the agent and the modules together;
//! - [`image`] makes a file system of the agent that guests without modules have in persistent memory;
//! - [`noise`] makes the bytes that tests send through a guest's devices.
//!
//! The agent itself, which runs inside the guest, is the binary `orlop-agent` of this crate. `orlop-story-peer` is what tests have there.

pub mod boot_mark;
pub mod bzimage;
pub mod cpio;
mod elf;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod noise;
pub mod signature;
