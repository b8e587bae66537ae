//! The kernel's list of mounts, and unmounting by it.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Unmounts whatever is mounted at or below `directory`, in use or not, last mounted first.
///
/// # Errors
/// When something is still mounted after that.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let mut left = mounts_below(directory)?;
    // A mount that hides another shows it once it is gone, so once is not always enough.
    for _ in 0..16 {
        if left.is_empty() {
            return Ok(());
        }
        for target in left.iter().rev() {
            // MNT_DETACH: somebody in the guest, or virtiofsd, may still hold a file open.
            match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(error) => log::warn!("cannot unmount {}: {error}", target.display()),
            }
        }
        left = mounts_below(directory)?;
    }
    let what = left
        .first()
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    Err(io::Error::other(format!("{what} is still mounted")))
}

/// The mount points at or below `directory`, in the order in which they were mounted.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(mount_points(&table)
        .filter(|point| point.starts_with(directory))
        .collect())
}

/// The mount points of a mountinfo table: the fifth field, in which space, tab, newline and backslash are octal.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table
        .lines()
        .filter_map(|line| Some(PathBuf::from(unescape(line.split(' ').nth(4)?))))
}

fn unescape(field: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => bytes.push(first),
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_escaped_mount_points() {
        let table =
            "36 35 98:0 /r /mnt\\0402\\134x rw,noatime master:1 - ext3 /dev/root rw\nnonsense\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/mnt 2\\x")]);
        assert_eq!(unescape("a\\04"), "a\\04");
    }
}
