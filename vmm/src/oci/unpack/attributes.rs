//! What a file has besides its content: owner, mode, time, extended attributes.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use tar::EntryType;

use super::refused;

/// The beginning of a PAX record that is an extended attribute.
const XATTR: &str = "SCHILY.xattr.";

/// A number of a header. Writers leave a field empty for zero, which is malformed to the letter.
fn number(field: &[u8], read: io::Result<u64>) -> io::Result<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    read
}

/// What a file has besides its content.
pub struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    time: TimeSpec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    /// Those of an entry.
    ///
    /// # Errors
    /// When one of them is malformed.
    pub fn read(entry: &mut tar::Entry<impl Read>) -> io::Result<Self> {
        let id = |id: u64| u32::try_from(id).map_err(|_| refused("its owner is no user id"));
        let header = entry.header();
        let fields = header.as_old();
        let seconds = number(&fields.mtime, header.mtime())?;
        let mut read = Self {
            uid: id(number(&fields.uid, header.uid())?)?,
            gid: id(number(&fields.gid, header.gid())?)?,
            mode: header.mode()? & 0o7777,
            time: TimeSpec::new(i64::try_from(seconds).unwrap_or(i64::MAX), 0),
            xattrs: Vec::new(),
        };
        for record in entry.pax_extensions()?.into_iter().flatten() {
            let record = record?;
            let Ok(key) = record.key() else {
                continue;
            };
            if let Some(name) = key.strip_prefix(XATTR) {
                let value = record.value_bytes().to_vec();
                read.xattrs.push((name.into(), value));
            } else if key == "mtime" {
                let text = record.value().unwrap_or_default();
                read.time = time(text).ok_or_else(|| refused("its time is malformed"))?;
            }
        }
        Ok(read)
    }

    /// Gives them to `name` in `parent`, all but the time, which is answered.
    ///
    /// # Errors
    /// When the file system refuses one of them.
    pub fn set(self, parent: &OwnedFd, name: &OsStr, kind: EntryType) -> io::Result<TimeSpec> {
        let (owner, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let no_follow = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(parent, name, Some(owner), Some(group), no_follow)?;
        // Behind chown, which takes the set-user-ID bit and capabilities away. A link has no mode.
        if kind != EntryType::Symlink {
            // What is there is what we have made, and no link.
            let mode = Mode::from_bits_truncate(self.mode);
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        for (key, value) in &self.xattrs {
            match xattr::set(&path, key, value) {
                // The host's labels of its own files; a file system may keep no attributes of users for links and devices.
                Err(_) if key == "security.selinux" => {}
                set => set.map_err(|error| {
                    let what = format!("the attribute {}: {error}", key.display());
                    io::Error::new(error.kind(), what)
                })?,
            }
        }
        Ok(self.time)
    }
}

/// Seconds, with a fraction, as PAX has them.
fn time(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let (seconds, nanoseconds): (i64, i64) = (seconds.parse().ok()?, nanoseconds.parse().ok()?);
    if text.starts_with('-') && nanoseconds > 0 {
        return Some(TimeSpec::new(seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Some(TimeSpec::new(seconds, nanoseconds))
}
