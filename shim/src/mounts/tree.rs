//! Binding a directory or a file elsewhere.
//!
//! A bind mount that is made first and set read-only afterwards is writable where it has spread to: the copy in
//! virtiofsd's mount namespace is made with the mount, and later changes of the flags do not follow it. So the
//! tree is cloned, given its flags while nobody sees it, and then put in place.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// Of <linux/mount.h>; the libc crate does not have them for this target.
const OPEN_TREE_CLONE: libc::c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_int = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// What mount_setattr(2) takes (`struct mount_attr`).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// How a tree is bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bind {
    /// With what is mounted below it.
    pub recursive: bool,
    /// So that nothing can be written through it.
    pub readonly: bool,
}

/// Binds `source`, a directory or a file, on `target`, which is of the same sort.
///
/// The bound tree receives later mounts and unmounts from its source, and sends none back.
///
/// # Errors
/// What the system says.
pub fn bind(source: &Path, target: &Path, how: Bind) -> io::Result<()> {
    let tree = clone(source, how.recursive)?;
    let readonly = if how.readonly { MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(&tree, readonly, libc::MS_SLAVE)?;
    attach(&tree, target)
}

/// Binds the directory `source` on `target`, read-only, so that what is mounted below `target` later on is seen by
/// those who have taken a copy of it.
///
/// # Errors
/// What the system says.
pub fn bind_shared_readonly(source: &Path, target: &Path) -> io::Result<()> {
    let tree = clone(source, false)?;
    // First out of the group that the source may belong to, then into a new one.
    set_attributes(&tree, MOUNT_ATTR_RDONLY, libc::MS_PRIVATE)?;
    set_attributes(&tree, 0, libc::MS_SHARED)?;
    attach(&tree, target)
}

fn clone(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(source)?;
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a C string that lives through the call; a new descriptor or -1 comes back.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_attributes(tree: &OwnedFd, set: u64, propagation: libc::c_ulong) -> io::Result<()> {
    let attributes = MountAttributes {
        set,
        clear: 0,
        propagation,
        user_namespace: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let size = size_of_val(&attributes);
    // SAFETY: the empty path is a C string, the structure is of the size that is said, and both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both paths are C strings that outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path holds a zero byte"))
}
