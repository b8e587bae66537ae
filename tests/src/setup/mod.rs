//! What a fresh Debian 12 lacks, installed or built once. Every step looks first, so a second run costs next to nothing.
//!
//! - [`debian`]: packages, installed or only unpacked;
//! - [`debian_image`]: an image of Debian's packages;
//! - [`emulator`]: a QEMU that is new enough;
//! - [`build`]: the workspace's programs, the static agent, virtiofsd, fsx, the hostile guest;
//! - [`go`]: Kubernetes and what a node of it has;
//! - [`guest`]: the guest's kernel and initramfs;
//! - [`linux`]: kernels of our own; [`own_kernel`]: the guest's; [`host_kernel`]: one for virtual hosts.

pub mod build;
pub mod debian;
pub mod debian_image;
pub mod emulator;
pub mod go;
pub mod guest;
pub mod host_kernel;
pub mod linux;
pub mod own_kernel;

use anyhow::Result;

use crate::cache::Cache;
use crate::host::HostKernel;
use crate::host::emulator::Emulator;
use crate::host::kernel::Kernel;
use crate::progress::step;

/// The newer of the two kernels for guests that Debian 12 has.
const NEWER_KERNEL: &str = "linux-image-6.12-cloud-amd64";

/// Everything that the demo needs.
///
/// # Errors
/// When a step fails; the error says which and what to do.
pub fn everything() -> Result<()> {
    let cache = Cache::open()?;
    virtual_host(HostKernel::default())?;
    debian::install(debian::CONTAINERS)?;
    debian::install(debian::VIRTIOFSD_BUILD)?;
    debian::install(debian::GUEST_IMAGE)?;
    build::programs()?;
    build::virtiofsd(&cache)?;
    guest::kernel(&cache)?;
    guest::initramfs(&cache)?;
    guest::image(&cache)?;
    step("everything is in place");
    Ok(())
}

/// What the tests need beyond that: guests' kernels of other kinds, a guest that is no kernel, and what exercises file systems.
///
/// # Errors
/// When a step fails; the error says which and what to do.
pub fn for_tests() -> Result<()> {
    everything()?;
    let cache = Cache::open()?;
    debian::install(debian::REFERENCES)?;
    debian::install(debian::TRAFFIC)?;
    debian::install(debian::LOADS)?;
    build::make_hostile_guest()?;
    build::fsx(&cache)?;
    debian::kernel(NEWER_KERNEL, &cache.newer_guest_kernel())?;
    own_kernel::build()?;
    Ok(())
}

/// What the virtual host needs: QEMU, busybox and a kernel.
///
/// # Errors
/// When something is missing and cannot be fetched.
pub fn virtual_host(kernel: HostKernel) -> Result<(Emulator, Kernel)> {
    let cache = Cache::open()?;
    debian::install(debian::VIRTUAL_HOST)?;
    let emulator = emulator::get(&cache)?;
    let debians = |package| debian::kernel(package, &cache.host_kernel(kernel));
    let kernel = match kernel {
        HostKernel::Stable => debians("linux-image-amd64")?,
        HostKernel::Newer => debians("linux-image-6.12-amd64")?,
        HostKernel::Iommufd => host_kernel::build()?,
    };
    Ok((emulator, kernel))
}
