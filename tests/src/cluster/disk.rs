//! What the node keeps when its power fails: a file system on a disk of its own, where the node is a virtual host. Where it is this
//! machine, which nobody switches off for a story, the same is in memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use super::Files;
use crate::host;

/// Where the node has it.
const PLACE: &str = "/run/node-disk";
/// How large it may become; only what is used of it is had.
const SIZE: u64 = 16 << 30;
/// By what the node knows it.
const SERIAL: &str = "node";

fn image(files: &Files) -> PathBuf {
    files.root().join("disk")
}

/// Makes an empty one.
pub(super) fn make(files: &Files) -> Result<()> {
    if host::kvm::is_hardware() {
        return Ok(());
    }
    let image = image(files);
    File::create(&image)?.set_len(SIZE)?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F"]).arg(&image);
    let done = command.output();
    let done = done.context("cannot run mkfs.ext4; `apt-get install e2fsprogs` installs it")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("mkfs.ext4 {}: {}", image.display(), said.trim());
    }
    Ok(())
}

/// QEMU's arguments for it.
pub(super) fn device(files: &Files) -> [String; 4] {
    let image = image(files);
    [
        "-drive".to_owned(),
        // This machine's own power does not fail, so nothing need wait for its disk.
        format!(
            "if=none,id=node,format=raw,cache=unsafe,file={}",
            image.display()
        ),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive=node,serial={SERIAL}"),
    ]
}

/// Mounts it, on the node.
pub(super) fn open() -> Result<PathBuf> {
    fs::create_dir_all(PLACE)?;
    if !host::is_virtual() {
        mount_at("tmpfs", PLACE.as_ref(), "tmpfs")?;
        return Ok(PLACE.into());
    }
    super::worker::load(&["virtio_blk", "ext4"])?;
    let disk = find()?.context("the virtual host has no disk")?;
    mount_at(&disk, PLACE.as_ref(), "ext4")?;
    Ok(PLACE.into())
}

/// Has what is written to `place` be on the disk.
pub(super) fn keep(disk: &Path, place: &str) -> Result<()> {
    let kept = disk.join(place.trim_start_matches('/'));
    fs::create_dir_all(&kept)?;
    fs::create_dir_all(place)?;
    let flags = MsFlags::MS_BIND;
    mount(Some(&kept), place, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot have {place} on the node's disk"))
}

/// Has what is written to `place` be gone when the node starts again.
pub(super) fn forget(place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    mount_at("tmpfs", place, "tmpfs")
}

fn mount_at(what: &str, place: &Path, kind: &str) -> Result<()> {
    mount(
        Some(what),
        place,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("cannot mount {what} on {}", place.display()))
}

/// The device file of the disk with our serial number. A driver that was just loaded has found its disks.
fn find() -> Result<Option<String>> {
    for disk in fs::read_dir("/sys/block")?.flatten() {
        let said = fs::read_to_string(disk.path().join("serial"));
        if said.is_ok_and(|said| said.trim_end() == SERIAL) {
            return Ok(Some(format!("/dev/{}", disk.file_name().display())));
        }
    }
    Ok(None)
}
