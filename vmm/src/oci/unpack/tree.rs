//! Names in open directories, where no link leads anywhere.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What is at `name` in `directory`, if anything is.
///
/// # Errors
/// When the directory cannot be searched.
pub fn kind_of(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<SFlag>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(
            SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT,
        )),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes `name` and all below it, if it is there.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match kind_of(directory, name)? {
        None => Ok(()),
        Some(SFlag::S_IFDIR) => {
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let opened = openat(directory, name, flags, Mode::empty())?;
            for inner in names(opened.try_clone()?)? {
                remove(&opened, &inner)?;
            }
            Ok(unlinkat(directory, name, UnlinkatFlags::RemoveDir)?)
        }
        Some(_) => Ok(unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?),
    }
}

/// The names in a directory.
///
/// # Errors
/// When it cannot be read.
pub fn names(directory: OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(directory)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}
