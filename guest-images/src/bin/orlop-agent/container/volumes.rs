//! Volumes that the guest keeps in its own memory: copies of small ones of the host's, which are brought up to date as those change.
//!
//! Each step of that is one that a watcher (inotify) understands, and in the order that the kubelet has on the host: what is new first, then the
//! links that lead to it, each replaced at once, and in the end what is not there any more goes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use orlop_proto::agent::v1::volume_entry::Content;
use orlop_proto::agent::v1::{Volume, VolumeEntry};

use super::Containers;
use crate::error::{Error, Result};
use crate::ids::Id;

/// The permissions of `st_mode`.
const PERMISSIONS: u32 = 0o7777;

impl Containers {
    /// Brings a volume up to date.
    ///
    /// # Errors
    /// As the interface says.
    pub fn update_volume(&self, container: &Id, number: u32, volume: &Volume) -> Result<()> {
        self.container(container)?;
        let place = self.places.volumes(container).join(number.to_string());
        if !place.is_dir() {
            let what = format!("container {container} has no volume {number}");
            return Err(Error::NotFound(what));
        }
        fill(&place, volume)
    }
}

/// Makes a container's volumes in `directory`.
pub(super) fn make(directory: &Path, volumes: &[Volume]) -> Result<()> {
    for (number, volume) in volumes.iter().enumerate() {
        let place = directory.join(number.to_string());
        fs::create_dir_all(&place).map_err(|error| Error::system(place.display(), error))?;
        fill(&place, volume)?;
    }
    Ok(())
}

/// Has the directory `place` hold what `volume` says, and nothing else.
fn fill(place: &Path, volume: &Volume) -> Result<()> {
    let entries = checked(volume)?;
    // On the same file system, and where nobody looks.
    let scratch = place.with_extension("new");
    let kinds: [fn(&Content) -> bool; 3] = [
        |content| matches!(content, Content::Directory(_)),
        |content| matches!(content, Content::File(_)),
        |content| matches!(content, Content::Link(_)),
    ];
    for is_of_kind in kinds {
        for (path, (entry, content)) in &entries {
            if is_of_kind(content) {
                let path = place.join(path);
                put(&path, entry, content, &scratch)
                    .map_err(|error| Error::system(path.display(), error))?;
            }
        }
    }
    remove_others(place, Path::new(""), &entries)
        .map_err(|error| Error::system(place.display(), error))
}

type Entries<'v> = BTreeMap<&'v Path, (&'v VolumeEntry, &'v Content)>;

/// The entries by their paths, each of which stays in the volume: it leads through directories of the volume's own.
fn checked(volume: &Volume) -> Result<Entries<'_>> {
    let mut entries = Entries::new();
    for entry in &volume.entries {
        let path = Path::new(&entry.path);
        let normal = |part| matches!(part, Component::Normal(_));
        let content = entry.content.as_ref();
        let content = content.filter(|_| path.components().all(normal) && !path.has_root());
        let wrong = || Error::Invalid(format!("{:?} is no entry of a volume", entry.path));
        entries.insert(path, (entry, content.ok_or_else(wrong)?));
    }
    for (path, (_, content)) in &entries {
        let is_directory = |path: &Path| {
            path.as_os_str().is_empty()
                || matches!(entries.get(path), Some((_, Content::Directory(_))))
        };
        let wrong = match path.parent() {
            Some(parent) => !is_directory(parent),
            None => !matches!(content, Content::Directory(_)),
        };
        if wrong {
            let what = format!("{} is in no directory of its volume", path.display());
            return Err(Error::Invalid(what));
        }
    }
    Ok(entries)
}

/// Puts one entry where it belongs, unless it is there.
fn put(path: &Path, entry: &VolumeEntry, content: &Content, scratch: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => Some(found.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let (uid, gid) = (Some(entry.uid), Some(entry.gid));
    let dress = |path: &Path| {
        chown(path, uid, gid)?;
        fs::set_permissions(path, fs::Permissions::from_mode(entry.mode & PERMISSIONS))
    };
    match content {
        Content::Directory(_) => {
            if !found.is_some_and(|found| found.is_dir()) {
                if found.is_some() {
                    fs::remove_file(path)?;
                }
                fs::create_dir(path)?;
            }
            return dress(path);
        }
        Content::File(bytes) => {
            if found.is_some_and(|found| found.is_file()) && fs::read(path)? == *bytes {
                return dress(path);
            }
            fs::write(scratch, bytes)?;
            dress(scratch)?;
        }
        Content::Link(target) => {
            if found.is_some_and(|found| found.is_symlink())
                && fs::read_link(path)? == Path::new(target)
            {
                return lchown(path, uid, gid);
            }
            // One that an update left which failed.
            let _ = fs::remove_file(scratch);
            symlink(target, scratch)?;
            lchown(scratch, uid, gid)?;
        }
    }
    if found.is_some_and(|found| found.is_dir()) {
        fs::remove_dir_all(path)?;
    }
    fs::rename(scratch, path)
}

/// Removes what `directory`, one of the volume's at `place`, has beyond the entries.
fn remove_others(place: &Path, directory: &Path, entries: &Entries) -> io::Result<()> {
    for found in fs::read_dir(place.join(directory))? {
        let found = found?;
        let path: PathBuf = directory.join(found.file_name());
        let is_directory = found.file_type()?.is_dir();
        match (entries.contains_key(path.as_path()), is_directory) {
            (true, true) => remove_others(place, &path, entries)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(place.join(path))?,
            (false, false) => fs::remove_file(place.join(path))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use nix::unistd::{getegid, geteuid};
    use orlop_proto::agent::v1::VolumeDirectory;

    use super::*;

    fn entry(path: &str, mode: u32, content: Content) -> VolumeEntry {
        VolumeEntry {
            path: path.to_owned(),
            mode,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            content: Some(content),
        }
    }

    fn directory(path: &str) -> VolumeEntry {
        entry(path, 0o755, Content::Directory(VolumeDirectory {}))
    }

    fn file(path: &str, content: &str) -> VolumeEntry {
        entry(path, 0o640, Content::File(content.into()))
    }

    fn link(path: &str, target: &str) -> VolumeEntry {
        entry(path, 0, Content::Link(target.into()))
    }

    /// As the kubelet lays a ConfigMap out.
    fn config_map(time: &str, content: &[(&str, &str)]) -> Volume {
        let mut entries = vec![directory(""), link("..data", time), directory(time)];
        for (key, text) in content {
            entries.push(file(&format!("{time}/{key}"), text));
            entries.push(link(key, &format!("..data/{key}")));
        }
        Volume { entries }
    }

    fn names(place: &Path) -> Vec<String> {
        let entries = fs::read_dir(place).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_is_made_and_brought_up_to_date() {
        let place = tempfile::tempdir().unwrap();
        let one = config_map("..1", &[("a", "1"), ("a.new", "2")]);
        make(place.path(), &[Volume::default(), one]).unwrap();
        let volume = place.path().join("1");
        assert_eq!(names(&volume), ["..1", "..data", "a", "a.new"]);
        assert_eq!(fs::read_to_string(volume.join("a.new")).unwrap(), "2");
        let mode = fs::metadata(volume.join("a")).unwrap().mode();
        assert_eq!(mode & PERMISSIONS, 0o640);

        let two = config_map("..2", &[("a", "3"), ("b", "4")]);
        let kept = fs::symlink_metadata(volume.join("a")).unwrap().ino();
        fill(&volume, &two).unwrap();
        assert_eq!(names(&volume), ["..2", "..data", "a", "b"]);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        let stays = fs::symlink_metadata(volume.join("a")).unwrap().ino();
        assert_eq!(stays, kept, "what has not changed is not touched");
        fill(&volume, &two).unwrap();
        assert_eq!(names(place.path()), ["0", "1"], "nothing beside them");
    }

    #[test]
    fn what_was_of_another_kind_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let volume = |entries: Vec<VolumeEntry>| Volume { entries };
        fill(
            place.path(),
            &volume(vec![directory("x"), file("x/y", "1")]),
        )
        .unwrap();
        fill(place.path(), &volume(vec![file("x", "2")])).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("x")).unwrap(), "2");
        fill(place.path(), &volume(vec![link("x", "nowhere")])).unwrap();
        fill(place.path(), &volume(vec![directory("x")])).unwrap();
        assert!(place.path().join("x").is_dir());
        fill(place.path(), &Volume::default()).unwrap();
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn a_watcher_hears_of_the_swap() {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

        let place = tempfile::tempdir().unwrap();
        let volume = place.path().join("0");
        make(place.path(), &[config_map("..1", &[("a", "1")])]).unwrap();
        let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        watch.add_watch(&volume, flags).unwrap();
        fill(&volume, &config_map("..2", &[("a", "2")])).unwrap();
        let events = watch.read_events().unwrap();
        let heard: Vec<_> = events
            .iter()
            .filter_map(|event| event.name.as_ref())
            .collect();
        assert_eq!(heard, ["..data", "..1"]);
    }

    #[test]
    fn entries_that_lead_elsewhere_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let volume = place.path().join("0");
        fs::create_dir(&volume).unwrap();
        for wrong in [
            vec![file("../x", "")],
            vec![file("/x", "")],
            vec![directory("a"), file("a/../../x", "")],
            vec![link("a", place.path().to_str().unwrap()), file("a/x", "")],
            vec![file("a/x", "")],
            vec![file("", "")],
            vec![VolumeEntry {
                content: None,
                ..file("x", "")
            }],
        ] {
            let error = fill(&volume, &Volume { entries: wrong }).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error}");
        }
        assert!(names(&volume).is_empty());
        // A link that leads elsewhere is what the host has; nothing is written through it.
        let elsewhere = place.path().to_str().unwrap();
        let leads = vec![link("a", elsewhere)];
        fill(&volume, &Volume { entries: leads }).unwrap();
        let entries = vec![directory("a"), file("a/x", "1")];
        fill(&volume, &Volume { entries }).unwrap();
        assert!(!place.path().join("x").exists());
    }
}
