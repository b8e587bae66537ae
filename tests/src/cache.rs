//! Where everything lives that is fetched or built outside of the source tree.
//!
//! All of it can be made again: deleting the directory costs time, nothing else.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::HostKernel;

/// The cache directory, `$ORLOP_CACHE` or else `$HOME/.cache/orlop`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// What a guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// A file system with the agent, if the kernel has what it takes to run it from there.
    pub image: Option<PathBuf>,
    /// An initramfs with the agent.
    pub initramfs: PathBuf,
}

impl GuestFiles {
    /// The lines that name them in the configuration of Orlop.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Self {
            kernel,
            image,
            initramfs,
        } = self;
        let image = image.as_ref().map(|image| format!("image = {image:?}\n"));
        format!(
            "kernel = {kernel:?}\n{}initramfs = {initramfs:?}\n",
            image.unwrap_or_default()
        )
    }
}

impl Cache {
    /// Finds the cache directory, and makes it if need be.
    ///
    /// # Errors
    /// When neither `ORLOP_CACHE` nor `HOME` is set, or the directory cannot be made.
    pub fn open() -> Result<Self> {
        let root = match env::var_os("ORLOP_CACHE") {
            Some(root) => PathBuf::from(root),
            None => PathBuf::from(
                env::var_os("HOME").context("neither ORLOP_CACHE nor HOME is set; set one")?,
            )
            .join(".cache/orlop"),
        };
        Self::at(&root)
    }

    /// Takes `root` for the cache directory, and makes it if need be.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn at(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root)
            .with_context(|| format!("cannot make the cache directory {}", root.display()))?;
        let root = root.canonicalize()?;
        Ok(Self { root })
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The programs of one set that are built from Go modules; `version` tells what they were built from.
    #[must_use]
    pub fn go_programs(&self, set: &str, version: &str) -> PathBuf {
        self.root.join("go").join(format!("{set}-{version}"))
    }

    /// A virtual host's kernel: a package, unpacked, or what was built.
    #[must_use]
    pub fn host_kernel(&self, kernel: HostKernel) -> PathBuf {
        self.root.join(match kernel {
            HostKernel::Stable => "host/kernel",
            HostKernel::Newer => "host/kernel-6.12",
            HostKernel::Iommufd => "host/kernel-iommufd",
        })
    }

    /// The virtual host's QEMU, unpacked.
    #[must_use]
    pub fn emulator(&self) -> PathBuf {
        self.root.join("host/qemu")
    }

    /// The guests' kernel package, unpacked.
    #[must_use]
    pub fn guest_kernel(&self) -> PathBuf {
        self.root.join("guest/kernel")
    }

    /// Debian's package of a newer kernel for guests, unpacked.
    #[must_use]
    pub fn newer_guest_kernel(&self) -> PathBuf {
        self.root.join("guest/kernel-6.12")
    }

    /// The guests' kernel as an uncompressed ELF file.
    #[must_use]
    pub fn guest_vmlinux(&self) -> PathBuf {
        self.root.join("guest/vmlinux")
    }

    /// What pods boot: our own kernel where it was built, for it is what a release has and boots sooner; else Debian's.
    #[must_use]
    pub fn pod_boots(&self) -> GuestFiles {
        let own = self.own_vmlinux();
        if own.is_file() {
            GuestFiles {
                kernel: own,
                image: self.own_kernel_takes_images().then(|| self.own_image()),
                initramfs: self.own_initramfs(),
            }
        } else {
            self.debian_boots()
        }
    }

    /// Whether our own kernel, as it was built last, can run the agent from persistent memory.
    fn own_kernel_takes_images(&self) -> bool {
        let config = std::fs::read_to_string(self.own_kernel().join("config"));
        config.is_ok_and(|config| config.contains("CONFIG_X86_PMEM_LEGACY=y\n"))
    }

    /// What guests boot that have devices for which our own kernel has no drivers: Debian's kernel, with its modules.
    #[must_use]
    pub fn debian_boots(&self) -> GuestFiles {
        GuestFiles {
            kernel: self.guest_vmlinux(),
            image: None,
            initramfs: self.guest_initramfs(),
        }
    }

    /// The guests' kernel as Debian packages it, a `bzImage`.
    #[must_use]
    pub fn guest_vmlinuz(&self) -> PathBuf {
        self.root.join("guest/vmlinuz")
    }

    /// The directory of the guests' kernel of our own.
    #[must_use]
    pub fn own_kernel(&self) -> PathBuf {
        self.root.join("guest/own")
    }

    /// The guests' kernel of our own as an ELF file.
    #[must_use]
    pub fn own_vmlinux(&self) -> PathBuf {
        self.own_kernel().join("vmlinux")
    }

    /// The guests' kernel of our own as a `bzImage`.
    #[must_use]
    pub fn own_bzimage(&self) -> PathBuf {
        self.own_kernel().join("bzImage")
    }

    /// What guests of the kernel of our own boot with: the agent, and no modules.
    #[must_use]
    pub fn own_initramfs(&self) -> PathBuf {
        self.root.join("guest/initramfs-own.cpio")
    }

    /// The same agent in a file system, which those guests can have in persistent memory.
    #[must_use]
    pub fn own_image(&self) -> PathBuf {
        self.root.join("guest/agent.erofs")
    }

    /// The initramfs that goes with Debian's kernel: the agent, and that kernel's modules.
    #[must_use]
    pub fn guest_initramfs(&self) -> PathBuf {
        self.root.join("guest/initramfs.cpio")
    }

    /// A container image of Debian's packages, an OCI layout.
    #[must_use]
    pub fn debian_image(&self) -> PathBuf {
        self.root.join("images/debian")
    }

    /// The file system daemon that shares directories with a guest.
    #[must_use]
    pub fn virtiofsd(&self) -> PathBuf {
        self.root.join("bin/virtiofsd")
    }

    /// The program that exercises file systems.
    #[must_use]
    pub fn fsx(&self) -> PathBuf {
        self.root.join("bin/fsx")
    }
}
