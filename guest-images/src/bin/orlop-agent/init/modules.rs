//! Loads the kernel modules that the initramfs carries.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;

/// Loads all of them, in the order of their names, which is their load order.
///
/// # Errors
/// When one cannot be loaded.
pub fn load_all() -> anyhow::Result<()> {
    let directory = Path::new("/").join(orlop_guest_images::initramfs::MODULES);
    let Ok(entries) = fs::read_dir(&directory) else {
        // A kernel with everything built in needs none.
        return Ok(());
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        load(&file).with_context(|| format!("cannot load kernel module {}", file.display()))?;
    }
    Ok(())
}

fn load(file: &Path) -> anyhow::Result<()> {
    const NO_PARAMETERS: &CStr = c"";
    let module = File::open(file)?;
    // SAFETY: the descriptor is open, the string ends with a zero byte, and both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            module.as_raw_fd(),
            NO_PARAMETERS.as_ptr(),
            0,
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(Errno::ENOEXEC) => bail!("it is not for this kernel"),
        Err(errno) => bail!("{}", errno.desc()),
    }
}
