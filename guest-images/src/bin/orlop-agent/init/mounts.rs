//! What is mounted in the guest, and where.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orlop_proto::agent::{SHARE_MOUNT, SHARE_TAG};

use crate::cgroup;

/// The shared memory of a pod's containers.
const POD_SHM: &str = "/run/orlop/shm";

const HARMLESS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// What the agent itself needs before anything else.
///
/// # Errors
/// When something cannot be mounted.
pub fn early() -> anyhow::Result<()> {
    for (kind, place, flags) in [("proc", "/proc", HARMLESS), ("sysfs", "/sys", HARMLESS)] {
        mount_at(kind, kind, Path::new(place), flags, "")?;
    }
    mount_dev()
}

/// Mounts the devices, which the kernel has done by itself where the agent is in an image.
fn mount_dev() -> anyhow::Result<()> {
    let (kind, place) = (Some("devtmpfs"), "/dev");
    let flags = MsFlags::MS_NOSUID;
    let again = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    match mount(kind, place, kind, flags, None::<&str>) {
        Err(Errno::EBUSY) => mount(None::<&str>, place, None::<&str>, again, None::<&str>),
        mounted => mounted,
    }
    .context("cannot mount devtmpfs at /dev")
}

/// What containers need, in the guest's own root.
///
/// # Errors
/// When something cannot be mounted.
pub fn late() -> anyhow::Result<()> {
    // Group 5 is tty, by old custom.
    mount_at(
        "devpts",
        "devpts",
        Path::new("/dev/pts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_tmpfs(Path::new("/dev/shm"), plain, "mode=1777")?;
    mount_tmpfs(Path::new("/run"), plain, "mode=0755")?;
    mount_tmpfs(Path::new("/tmp"), plain, "mode=1777")?;
    mount_tmpfs(Path::new(POD_SHM), HARMLESS, "mode=1777")?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, link);
    }
    mount_at(
        "cgroup2",
        "cgroup2",
        Path::new(cgroup::ROOT),
        HARMLESS,
        "nsdelegate",
    )?;
    delegate_controllers()?;
    mount_share()
}

/// Writes everything to the devices and lets the share go.
pub fn flush() {
    nix::unistd::sync();
    let _ = umount2(SHARE_MOUNT, MntFlags::MNT_DETACH);
    nix::unistd::sync();
}

/// Mounts a tmpfs, making its directory.
///
/// # Errors
/// When it cannot be mounted.
pub fn mount_tmpfs(place: &Path, flags: MsFlags, options: &str) -> anyhow::Result<()> {
    mount_at("tmpfs", "tmpfs", place, flags, options)
}

fn mount_at(
    source: &str,
    kind: &str,
    place: &Path,
    flags: MsFlags,
    options: &str,
) -> anyhow::Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    match mount(Some(source), place, Some(kind), flags, Some(options)) {
        Ok(()) => Ok(()),
        Err(Errno::ENODEV) => Err(anyhow::anyhow!(
            "the guest's kernel has no file system {kind}, which {} needs",
            place.display()
        )),
        Err(errno) => {
            Err(errno).with_context(|| format!("cannot mount {kind} at {}", place.display()))
        }
    }
}

/// Lets the groups below the root have every controller that the kernel has.
fn delegate_controllers() -> anyhow::Result<()> {
    let root = Path::new(cgroup::ROOT);
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))
        .context("cannot read the control group's controllers")?;
    for controller in controllers.split_whitespace() {
        // One by one: a controller that refuses does not take the others with it.
        if let Err(error) = fs::write(
            root.join("cgroup.subtree_control"),
            format!("+{controller}"),
        ) {
            log::warn!("control group controller {controller} cannot be used: {error}");
        }
    }
    Ok(())
}

/// Mounts the host's share, if the guest has one.
fn mount_share() -> anyhow::Result<()> {
    let place = Path::new(SHARE_MOUNT);
    fs::create_dir_all(place).context("cannot make the share's directory")?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))
        .context("cannot make the share's directory")?;
    match mount(
        Some(SHARE_TAG),
        place,
        Some("virtiofs"),
        MsFlags::empty(),
        None::<&str>,
    ) {
        Ok(()) => Ok(()),
        // EINVAL: no device has this tag. ENODEV: the kernel does not know the file system.
        Err(Errno::EINVAL | Errno::ENODEV) => {
            log::info!("the guest has no share");
            Ok(())
        }
        Err(errno) => Err(errno).context("cannot mount the share"),
    }
}
