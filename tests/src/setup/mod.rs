//! What a fresh Debian 12 lacks, installed or built once. Every step looks first, so a second run costs next to nothing.

pub mod debian;

use anyhow::Result;

use crate::cache::Cache;
use crate::host::kernel::Kernel;

/// Everything that the demo and the tests need.
///
/// # Errors
/// When a step fails; the error says which and what to do.
pub fn everything() -> Result<()> {
    virtual_host().map(drop)
}

/// What the virtual host needs: QEMU, busybox and a kernel.
///
/// # Errors
/// When something is missing and cannot be fetched.
pub fn virtual_host() -> Result<Kernel> {
    let cache = Cache::open()?;
    debian::install(debian::VIRTUAL_HOST)?;
    debian::kernel("linux-image-amd64", &cache.host_kernel())
}
