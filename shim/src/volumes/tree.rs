//! A directory of the host with all that is in it, as a message.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use orlop_proto::agent::v1::volume_entry::Content;
use orlop_proto::agent::v1::{Volume, VolumeDirectory, VolumeEntry};

use super::Room;

/// What changes with a volume: the kubelet swaps it by giving the link `..data` another target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: (i64, i64),
    data: Option<PathBuf>,
}

impl Stamp {
    pub(super) fn of(directory: &Path) -> io::Result<Self> {
        let found = fs::metadata(directory)?;
        Ok(Self {
            modified: (found.mtime(), found.mtime_nsec()),
            data: fs::read_link(directory.join("..data")).ok(),
        })
    }
}

/// All that `directory` holds, and the room that is left; `None` if there is not so much room, or what is in there is not of the kind
/// that is copied: names that are no text, sockets, devices.
pub(super) fn read(directory: &Path, room: &Room) -> io::Result<Option<(Volume, Room)>> {
    let mut reader = Reader {
        volume: Volume::default(),
        room: Room { ..*room },
    };
    let whole =
        fs::symlink_metadata(directory)?.is_dir() && reader.take(directory, Path::new(""))?;
    Ok(whole.then_some((reader.volume, reader.room)))
}

struct Reader {
    volume: Volume,
    room: Room,
}

impl Reader {
    /// Takes an entry with all that is in it. Whether it could.
    fn take(&mut self, root: &Path, path: &Path) -> io::Result<bool> {
        let place = root.join(path);
        let found = fs::symlink_metadata(&place)?;
        let Some(name) = path.to_str() else {
            return Ok(false);
        };
        let (Some(entries), kind) = (self.room.entries.checked_sub(1), found.file_type()) else {
            return Ok(false);
        };
        self.room.entries = entries;
        let content = if kind.is_dir() {
            Content::Directory(VolumeDirectory {})
        } else if kind.is_symlink() {
            let target = fs::read_link(&place)?;
            let Ok(target) = target.into_os_string().into_string() else {
                return Ok(false);
            };
            Content::Link(target)
        } else if kind.is_file() && found.len() <= self.room.bytes as u64 {
            Content::File(fs::read(&place)?)
        } else {
            return Ok(false);
        };
        let bytes = path.as_os_str().as_bytes().len()
            + match &content {
                Content::Directory(_) => 0,
                Content::File(bytes) => bytes.len(),
                Content::Link(target) => target.len(),
            };
        let Some(left) = self.room.bytes.checked_sub(bytes) else {
            return Ok(false);
        };
        self.room.bytes = left;
        self.volume.entries.push(VolumeEntry {
            path: name.to_owned(),
            mode: found.mode(),
            uid: found.uid(),
            gid: found.gid(),
            content: Some(content),
        });
        if kind.is_dir() {
            for entry in fs::read_dir(&place)? {
                if !self.take(root, &path.join(entry?.file_name()))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ROOM: Room = Room {
        bytes: 100,
        entries: 8,
    };

    /// As the kubelet lays a ConfigMap out.
    fn config_map(content: &[u8]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("..1")).unwrap();
        fs::write(path.join("..1/key"), content).unwrap();
        symlink("..1", path.join("..data")).unwrap();
        symlink("..data/key", path.join("key")).unwrap();
        directory
    }

    #[test]
    fn a_volume_is_read_with_its_links() {
        let directory = config_map(b"value");
        let (volume, left) = read(directory.path(), &ROOM).unwrap().unwrap();
        let mut entries: Vec<_> = volume
            .entries
            .iter()
            .map(|entry| (entry.path.as_str(), entry.content.as_ref().unwrap()))
            .collect();
        assert_eq!(entries[0].0, "", "a directory stands before what is in it");
        entries.sort_by_key(|(path, _)| *path);
        let directory = Content::Directory(VolumeDirectory {});
        assert_eq!(
            entries,
            [
                ("", &directory),
                ("..1", &directory),
                ("..1/key", &Content::File(b"value".into())),
                ("..data", &Content::Link("..1".into())),
                ("key", &Content::Link("..data/key".into())),
            ]
        );
        assert_eq!(left.entries, 3);
    }

    #[test]
    fn what_is_too_large_or_no_file_is_not_read() {
        let large = config_map(&[b'x'; 101]);
        assert!(read(large.path(), &ROOM).unwrap().is_none());
        let few = Room { entries: 4, ..ROOM };
        let directory = config_map(b"value");
        assert!(read(directory.path(), &few).unwrap().is_none());
        assert!(
            read(&directory.path().join("..data"), &ROOM)
                .unwrap()
                .is_none()
        );
        let _socket =
            std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        assert!(read(directory.path(), &ROOM).unwrap().is_none());
        assert!(read(Path::new("/nowhere"), &ROOM).is_err());
    }

    #[test]
    fn a_swap_changes_the_stamp() {
        let directory = config_map(b"value");
        let path = directory.path();
        let before = Stamp::of(path).unwrap();
        assert_eq!(Stamp::of(path).unwrap(), before);
        fs::create_dir(path.join("..2")).unwrap();
        symlink("..2", path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
        assert_ne!(Stamp::of(path).unwrap(), before);
    }
}
