//! From the file system that the agent comes in to a root file system of the guest's own.
//!
//! An initramfs is the kernel's `rootfs`, which can be neither unmounted nor pivoted away from; a container whose root it
//! is cannot be made. An image cannot be written to. So a tmpfs is mounted over it, the way switch_root(8) does. The agent's own binary stays
//! where it is, where nothing names it any more: it goes on to run, and to start itself anew, by /proc/self/exe.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::mounts::mount_tmpfs;

const NEW_ROOT: &str = "/root";

/// What is mounted already and comes along.
const MOVED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Moves to a new, writable root. /dev, /proc and /sys must be mounted.
///
/// # Errors
/// When a step fails.
pub fn move_to_own() -> anyhow::Result<()> {
    let new_root = Path::new(NEW_ROOT);
    fs::create_dir_all(new_root).context("cannot make the new root")?;
    mount_tmpfs(new_root, MsFlags::empty(), "mode=0755")?;
    for old in MOVED {
        let new = new_root.join(old.trim_start_matches('/'));
        fs::create_dir(&new).with_context(|| format!("cannot make {}", new.display()))?;
        mount(
            Some(old),
            &new,
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .with_context(|| format!("cannot move {old} to the new root"))?;
    }
    // The modules are in the kernel now; their files would only take memory. An image stays as it is.
    let _ = fs::remove_dir_all(Path::new("/").join(orlop_guest_images::initramfs::MODULES));
    let _ = fs::remove_file("/init");

    chdir(new_root).context("cannot enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the new root into place")?;
    chroot(".").context("cannot make the new root the root")?;
    chdir("/").context("cannot enter the root")
}
