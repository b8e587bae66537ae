//! Entries of a layer as files of their kinds.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};
use tar::EntryType;

use super::tree::{kind_of, remove};
use super::{Unpacker, plain, refused};
use crate::oci::digest::wrong;

/// Puts what `entry` says at `path`, whose directory is open as `parent`, in place of what is there.
///
/// # Errors
/// When the entry is refused or cannot be written.
pub fn create(
    unpacker: &Unpacker,
    parent: &OwnedFd,
    path: &Path,
    entry: &mut tar::Entry<impl Read>,
) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| refused("it has no name"))?;
    let kind = entry.header().entry_type();
    let there = kind_of(parent, name)?;
    if kind == EntryType::Directory && there == Some(SFlag::S_IFDIR) {
        return Ok(());
    }
    // What a link leads to is found before what is in its place is removed: it may be the same.
    let link = match entry.link_name_bytes() {
        Some(link) => PathBuf::from(OsString::from_vec(link.into_owned())),
        None => PathBuf::new(),
    };
    if kind == EntryType::Link && plain(&link)? == path {
        return Err(refused("it is a link to itself"));
    }
    if there.is_some() {
        remove(parent, name)?;
    }
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    let node = |kind, device| mknodat(parent, name, kind, private, device);
    match kind {
        EntryType::Directory => mkdirat(parent, name, private | Mode::S_IXUSR)?,
        EntryType::Symlink => symlinkat(link.as_path(), parent, name)?,
        EntryType::Link => {
            let target = plain(&link)?;
            let (from, target) = unpacker.parent(&target)?;
            linkat(from, target, parent, name, AtFlags::empty())?;
        }
        EntryType::Fifo => node(SFlag::S_IFIFO, 0)?,
        EntryType::Char | EntryType::Block => {
            let header = entry.header();
            let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
            let device = makedev(
                number(header.device_major())?.into(),
                number(header.device_minor())?.into(),
            );
            let kind = match kind {
                EntryType::Char => SFlag::S_IFCHR,
                _ => SFlag::S_IFBLK,
            };
            node(kind, device)?;
        }
        kind if kind.is_file() || kind == EntryType::GNUSparse => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, private)?);
            let wanted = entry.size();
            if io::copy(entry, &mut file)? != wanted {
                return Err(wrong("the layer ends within it"));
            }
        }
        other => return Err(refused(&format!("entries of kind {other:?} are not known"))),
    }
    Ok(())
}
