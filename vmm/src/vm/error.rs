//! Why a VM could not be built.

use std::path::PathBuf;

use crate::devices::{console, vfio, virtio};
use crate::{arch, boot, bus, irq, memory, pci};

/// Why a VM could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No KVM.
    #[error("cannot open /dev/kvm; `orlop doctor` says what is missing")]
    Kvm(#[source] kvm_ioctls::Error),
    /// A KVM that is too old or too different.
    #[error("/dev/kvm speaks API version {0}, and 12 is needed; `orlop doctor` says more")]
    KvmVersion(i32),
    /// KVM refused something.
    #[error("KVM cannot {0}")]
    KvmRefused(&'static str, #[source] kvm_ioctls::Error),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The file of `--pmem`.
    #[error(transparent)]
    Rom(#[from] memory::rom::Error),
    /// Kernel, initramfs, command line.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] arch::x86_64::acpi::Error),
    /// A vCPU's first state.
    #[error(transparent)]
    Registers(#[from] arch::x86_64::regs::Error),
    /// CPUID.
    #[error("the list of CPUID leaves is too long")]
    Cpuid(#[source] vmm_sys_util::fam::Error),
    /// Interrupts.
    #[error(transparent)]
    Irq(#[from] irq::Error),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// PCI.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// The console.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] virtio::blk::OpenError),
    /// A network device.
    #[error(transparent)]
    Net(#[from] virtio::net::CreateError),
    /// Randomness.
    #[error(transparent)]
    Rng(#[from] virtio::rng::OpenError),
    /// The vsock.
    #[error(transparent)]
    Vsock(#[from] virtio::vsock::CreateError),
    /// A shared directory.
    #[error(transparent)]
    Fs(#[from] virtio::fs::CreateError),
    /// A device of the host's.
    #[error(transparent)]
    Vfio(#[from] vfio::Error),
    /// The control socket.
    #[error("cannot listen on the control socket {path}")]
    ControlSocket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread, an eventfd.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
}
