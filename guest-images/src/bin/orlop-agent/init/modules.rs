//! Loads the kernel modules that the initramfs carries: those that this guest needs before it can serve, and the rest when
//! it does.
//!
//! Loading a module takes as long as a good part of the agent's start, so a driver is loaded only for a device that is there.
//!
//! A kernel that has everything built in comes with an initramfs without modules, or cannot load the ones that are there; both are well.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before the guest serves.
    Now,
    /// Before the guest serves, if it has a virtio device of this kind (virtio 1.2, 5 "Device Types").
    NowFor(u32),
    /// Before the guest serves, if it has a virtio device of this kind; else once it serves.
    NowForElseLater(u32),
    /// Once the guest serves.
    Later,
    /// Once the guest serves, if it has a virtio device of this kind.
    LaterFor(u32),
}

const NETWORK: u32 = 1;
const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;
const BALLOON: u32 = 5;
const MEMORY: u32 = 24;
const FILE_SYSTEM: u32 = 26;

fn when(module: &str) -> When {
    match module {
        "fuse" | "virtiofs" => When::NowFor(FILE_SYSTEM),
        "virtio_net" | "net_failover" | "failover" => When::NowFor(NETWORK),
        "virtio_blk" | "erofs" | "libcrc32c" => When::NowFor(BLOCK),
        "virtio_rng" => When::LaterFor(ENTROPY),
        "virtio_balloon" => When::LaterFor(BALLOON),
        "virtio_mem" => When::LaterFor(MEMORY),
        // A root file system on a disk has a layer above it.
        "overlay" => When::NowForElseLater(BLOCK),
        "button" | "evdev" | "ptp_kvm" => When::Later,
        _ => When::Now,
    }
}

/// Modules that are loaded once the guest serves. They are open already: the initramfs will be gone.
#[derive(Debug, Default)]
pub struct Later(Vec<(PathBuf, File)>);

impl Later {
    /// Loads them. What cannot be loaded is logged: the guest does without.
    pub fn load(self) {
        for (path, file) in self.0 {
            if let Err(error) = load_one(&file) {
                log::warn!("cannot load kernel module {}: {error:#}", path.display());
            }
        }
    }
}

/// Loads what is needed now, in the order of the files' names, which is the load order.
///
/// # Errors
/// When one cannot be loaded.
pub fn load() -> anyhow::Result<Later> {
    let directory = Path::new("/").join(orlop_guest_images::initramfs::MODULES);
    let Ok(entries) = fs::read_dir(&directory) else {
        // A kernel with everything built in needs none.
        return Ok(Later::default());
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut later = Later::default();
    for path in files {
        // The bus comes before its drivers in the load order, so its devices are known by the time they matter.
        let (now, needed) = match when(module_name(&path)) {
            When::Now => (true, true),
            When::NowFor(device) => (true, has_virtio(device)),
            When::NowForElseLater(device) => (has_virtio(device), true),
            When::Later => (false, true),
            When::LaterFor(device) => (false, has_virtio(device)),
        };
        if !needed {
            continue;
        }
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if now {
            log::debug!("loading {}", path.display());
            let loaded = load_one(&file)
                .with_context(|| format!("cannot load kernel module {}", path.display()))?;
            if loaded == Loaded::NotByThisKernel {
                log::info!("the kernel has all built in");
                return Ok(Later::default());
            }
        } else {
            later.0.push((path, file));
        }
    }
    Ok(later)
}

/// `/modules/04-virtio_pci.ko` is `virtio_pci`.
fn module_name(path: &Path) -> &str {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let stem = stem.unwrap_or_default();
    stem.split_once('-').map_or(stem, |(_, name)| name)
}

fn has_virtio(kind: u32) -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/devices") else {
        return false;
    };
    devices.flatten().any(|device| {
        fs::read_to_string(device.path().join("device"))
            .is_ok_and(|text| parse_kind(&text) == Some(kind))
    })
}

/// The kernel writes the number as `0x0013`.
fn parse_kind(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// What became of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    /// It is there.
    Yes,
    /// The kernel was built without modules.
    NotByThisKernel,
}

fn load_one(module: &File) -> anyhow::Result<Loaded> {
    const NO_PARAMETERS: &CStr = c"";
    // SAFETY: the descriptor is open, the string ends with a zero byte, and both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            module.as_raw_fd(),
            NO_PARAMETERS.as_ptr(),
            0,
        )
    };
    outcome(Errno::result(result))
}

fn outcome(result: nix::Result<libc::c_long>) -> anyhow::Result<Loaded> {
    match result {
        Ok(_) | Err(Errno::EEXIST) => Ok(Loaded::Yes),
        Err(Errno::ENOSYS) => Ok(Loaded::NotByThisKernel),
        Err(Errno::ENOEXEC) => bail!("it is not for this kernel"),
        Err(errno) => bail!("{}", errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_of_the_initramfs_has_its_time() {
        assert_eq!(when("virtio_pci"), When::Now);
        assert_eq!(when("vsock"), When::Now);
        assert_eq!(
            when(module_name(Path::new("/modules/08-fuse.ko"))),
            When::NowFor(26)
        );
        // Debian's virtio_net needs the other two.
        for name in ["failover", "net_failover", "virtio_net"] {
            assert_eq!(when(name), When::NowFor(1));
        }
        assert_eq!(
            when(module_name(Path::new("/modules/12-overlay.ko"))),
            When::NowForElseLater(2)
        );
        assert_eq!(
            when(module_name(Path::new("/modules/11-erofs.ko"))),
            When::NowFor(2)
        );
    }

    #[test]
    fn a_kernel_without_modules_is_no_error() {
        assert_eq!(outcome(Ok(0)).unwrap(), Loaded::Yes);
        assert_eq!(outcome(Err(Errno::EEXIST)).unwrap(), Loaded::Yes);
        assert_eq!(
            outcome(Err(Errno::ENOSYS)).unwrap(),
            Loaded::NotByThisKernel
        );
        for errno in [Errno::ENOEXEC, Errno::EPERM, Errno::ENOENT] {
            assert!(outcome(Err(errno)).is_err());
        }
    }

    #[test]
    fn reads_the_kernels_device_numbers() {
        assert_eq!(parse_kind("0x001a\n"), Some(26));
        assert_eq!(parse_kind("26"), None);
        assert_eq!(parse_kind(""), None);
    }
}
