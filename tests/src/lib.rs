//! The testbed: what it takes to run Orlop's own stories on a machine that may have no hardware virtualisation.
//!
//! - [`host`]: a machine with a real `/dev/kvm`. Where this machine has one, commands run directly; elsewhere they run in the
//!   *virtual host*, a Debian kernel under QEMU's emulation of AMD SVM whose root file system is this machine's own.
//! - [`setup`]: everything that a fresh Debian 12 lacks, installed or built once and kept in the [`cache`].
//! - [`containerd`]: a containerd of one's own with Orlop in it, and its clients; [`image`]: images for it;
//! - [`cluster`]: a Kubernetes cluster of one's own, whose node is such a machine;
//! - [`leaks`]: what a machine holds, before and after; [`children`]: what has ended of what was started;
//! - [`demo`]: `cargo testbed demo`; [`stories`]: `cargo testbed test`, which counts with [`tally`]; [`bench`]: `cargo testbed bench`;
//! - [`package`]: `cargo testbed package`, a release for nodes;
//! - [`progress`]: what people see while that happens.
//!
//! The binary (`cargo testbed`) is a thin command line over these rooms; the stories themselves are in `tests/tests`.

pub mod bench;
pub mod cache;
pub mod children;
pub mod cluster;
pub mod conformance;
pub mod containerd;
pub mod cpio;
pub mod demo;
mod groups;
pub mod host;
pub mod image;
#[cfg(test)]
mod installer;
pub mod leaks;
mod own;
pub mod package;
pub mod progress;
pub mod setup;
pub mod stories;
pub mod tally;
mod wanted;
