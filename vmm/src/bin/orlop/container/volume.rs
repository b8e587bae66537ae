//! A directory or a file of the host's in a container: `HOST:GUEST[:ro]`.
//!
//! Directories are shared. A file cannot be, without all that is beside it; so it is copied into the guest's memory, and only to be read.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use orlop_proto::agent::VOLUMES;
use orlop_proto::agent::v1::volume_entry::Content;
use orlop_proto::agent::v1::{self as agent, VolumeDirectory, VolumeEntry};
use orlop_vmm::config::ShareConfig;
use serde_json::{Value, json};

/// As many bytes as all files have that are copied: they go to the guest in one message, of 4 MiB at most.
const COPIES_MAX: u64 = 3 << 20;
/// The name of the one file in a copied volume.
const COPY: &str = "file";

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The directory or file on the host.
    pub host: PathBuf,
    /// Where the container has it.
    pub guest: String,
    /// Whether the container may not write.
    pub readonly: bool,
}

/// The volumes of a container, by how they come into its guest.
#[derive(Debug, Default)]
pub struct Volumes {
    shared: Vec<Volume>,
    copied: Vec<(Volume, agent::Volume)>,
}

impl Volumes {
    /// Looks at what they are, and reads the files.
    ///
    /// # Errors
    /// When one is not there, or is a file that is too large or is to be written.
    pub fn of(volumes: &[Volume]) -> anyhow::Result<Self> {
        let mut sorted = Self::default();
        let mut room = COPIES_MAX;
        for volume in volumes {
            let said = || format!("--volume {}", volume.host.display());
            if fs::metadata(&volume.host).with_context(said)?.is_dir() {
                sorted.shared.push(volume.clone());
                continue;
            }
            if !volume.readonly {
                bail!(
                    "{}: the container gets a copy of a file, and writes to it would be lost: say :ro, or share the directory that it is in",
                    said()
                );
            }
            let copy = copy(&volume.host, &mut room).with_context(said)?;
            sorted.copied.push((volume.clone(), copy));
        }
        Ok(sorted)
    }

    /// Those that are shared, as `--fs` has it.
    ///
    /// # Errors
    /// When a path of the host's has a comma in it.
    pub fn shares(&self) -> anyhow::Result<Vec<ShareConfig>> {
        let share = |(number, volume): (usize, &Volume)| {
            let (tag, host) = (tag(number), volume.host.display());
            let readonly = if volume.readonly { ",readonly" } else { "" };
            Ok(format!("tag={tag},path={host}{readonly}").parse()?)
        };
        self.shared.iter().enumerate().map(share).collect()
    }

    /// Those that are copied, as the agent takes them.
    pub fn copies(&self) -> Vec<agent::Volume> {
        self.copied.iter().map(|(_, copy)| copy.clone()).collect()
    }

    /// The mounts of the spec of `container`.
    pub fn mounts(&self, container: &str) -> Vec<Value> {
        let shared = self.shared.iter().enumerate().map(|(number, volume)| {
            let options: &[&str] = if volume.readonly { &["ro"] } else { &[] };
            json!({"destination": volume.guest, "type": "virtiofs", "source": tag(number), "options": options})
        });
        let copied = self.copied.iter().enumerate().map(|(number, (volume, _))| {
            let source = format!("{VOLUMES}/{container}/{number}/{COPY}");
            json!({"destination": volume.guest, "type": "bind", "source": source, "options": ["bind", "ro"]})
        });
        // A file may be in a directory that is shared.
        shared.chain(copied).collect()
    }
}

/// The tag of the shared volume of this number.
fn tag(number: usize) -> String {
    format!("volume{number}")
}

/// A volume that holds a copy of this file.
fn copy(path: &Path, room: &mut u64) -> anyhow::Result<agent::Volume> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        bail!("it is neither a directory nor a file");
    }
    *room = room.checked_sub(found.len()).with_context(|| {
        format!("the files that a container gets copies of have {COPIES_MAX} bytes at most: share the directory that it is in")
    })?;
    let entry = |path: &str, mode, content| VolumeEntry {
        path: path.to_owned(),
        mode,
        uid: found.uid(),
        gid: found.gid(),
        content: Some(content),
    };
    let directory = entry("", 0o755, Content::Directory(VolumeDirectory {}));
    let file = entry(COPY, found.mode(), Content::File(fs::read(path)?));
    Ok(agent::Volume {
        entries: vec![directory, file],
    })
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, guest, readonly) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [host, guest] => (*host, *guest, false),
            [host, guest, "ro"] => (*host, *guest, true),
            _ => return Err("write HOST:GUEST or HOST:GUEST:ro".into()),
        };
        if host.is_empty() || !guest.starts_with('/') {
            return Err(
                "HOST is a directory or a file here, GUEST an absolute path in the container"
                    .into(),
            );
        }
        Ok(Self {
            host: host.into(),
            guest: guest.into(),
            readonly,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_two_paths() {
        let volume: Volume = "/srv:/data:ro".parse().unwrap();
        assert_eq!((volume.guest.as_str(), volume.readonly), ("/data", true));
        for wrong in ["/srv", "/srv:data", ":/data", "/a:/b:rx"] {
            assert!(wrong.parse::<Volume>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn directories_are_shared_and_files_copied() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        fs::write(place.join("hosts"), "127.0.0.1").unwrap();
        let large = fs::File::create(place.join("large")).unwrap();
        large.set_len(COPIES_MAX).unwrap();
        let of = |texts: &[&str]| {
            let parse = |text: &&str| format!("{}/{text}", place.display()).parse();
            let volumes: Result<Vec<Volume>, _> = texts.iter().map(parse).collect();
            Volumes::of(&volumes.unwrap())
        };
        let volumes = of(&["hosts:/etc/hosts:ro", ":/data"]).unwrap();
        assert_eq!(volumes.shares().unwrap().len(), 1);
        let copy = &volumes.copies()[0].entries[1];
        assert_eq!(copy.content, Some(Content::File(b"127.0.0.1".into())));
        let mounts = volumes.mounts("c");
        assert_eq!(mounts[0]["source"], "volume0");
        assert_eq!(mounts[1]["source"], "/run/orlop/volumes/c/0/file");
        assert_eq!(mounts[1]["destination"], "/etc/hosts");
        for (texts, why) in [
            (&["hosts:/etc/hosts"][..], "say :ro"),
            (&["nothing:/a:ro"], "No such file"),
            (&["large:/a:ro", "hosts:/b:ro"], "bytes at most"),
        ] {
            let error = format!("{:#}", of(texts).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
