//! Images as disks, kept by the digest of their configuration, which names the digests of all their layers.
//!
//! ```text
//! STORE/images/HEX/root.erofs      the root file system
//!                 /config.json     the configuration
//!                 /passwd, /group  who the users are, as far as the image says
//!                 /image.json      what `orlop image ls` shows
//! STORE/unpacking/…                images on their way; one whose process has gone is removed by the next
//! ```
//!
//! An image is there whole or not at all: it is made beside, and renamed to its place. Two who want the same image do not wait
//! for each other; the second finds the first's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::OciError;
use super::allowance::Allowance;
use super::digest::Hashing;
use super::image::{Config, Image, Layer};
use super::layer::decompress_any;
use super::unpack::{Failure, Unpacker};

const DISK: &str = "root.erofs";
const RECORD: &str = "image.json";
/// The files of `/etc` that say who the users are.
const USERS: [&str; 2] = ["passwd", "group"];

/// The directory of unpacked images.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What is known of an unpacked image.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Record {
    /// The digest of its configuration.
    pub id: String,
    /// What it was first asked for by.
    pub name: String,
    /// How many layers it was made of.
    pub layers: usize,
}

/// An image as a disk. A VM that has opened it keeps it, whoever removes it then.
#[derive(Debug)]
pub struct Kept {
    /// The digest of its configuration, without `sha256:`.
    pub id: String,
    /// The disk: an erofs.
    pub disk: PathBuf,
    /// What the image says about its process.
    pub config: Config,
    /// The image's `/etc/passwd`; empty when it has none.
    pub passwd: String,
    /// The image's `/etc/group`; empty when it has none.
    pub group: String,
}

impl Store {
    /// The store in `directory`, which is made when it is needed.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// That of this machine: the one that `ORLOP_IMAGES` names, or else `/var/lib/orlop`.
    pub fn of_machine() -> Self {
        let named = std::env::var_os("ORLOP_IMAGES").filter(|name| !name.is_empty());
        Self::new(named.map_or_else(|| PathBuf::from("/var/lib/orlop"), PathBuf::from))
    }

    /// Where images are on their way.
    pub fn unpacking(&self) -> PathBuf {
        self.directory.join("unpacking")
    }

    fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    fn place(&self, id: &str) -> PathBuf {
        self.images().join(id)
    }

    /// The image as a disk: it is there, or is made now, with the name that it was asked for by. `progress` hears of each layer, from 1.
    ///
    /// # Errors
    /// When it cannot be made; then nothing of it is left.
    pub fn provide(
        &self,
        image: &Image,
        name: &str,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Kept, OciError> {
        let place = self.place(&image.id);
        if let Some(kept) = find(&place)? {
            return Ok(kept);
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(OciError::NotRoot);
        }
        let (unpacking, images) = (self.unpacking(), self.images());
        for directory in [&unpacking, &images] {
            fs::create_dir_all(directory).map_err(OciError::file("create", directory))?;
        }
        sweep(&unpacking);
        let staging =
            TempDir::new_in(&unpacking).map_err(OciError::file("write in", &unpacking))?;
        let lock = File::open(staging.path()).map_err(OciError::file("open", staging.path()))?;
        lock.lock_shared()
            .map_err(OciError::file("lock", staging.path()))?;
        make(image, name, staging.path(), progress)?;
        nix::unistd::syncfs(&lock)
            .map_err(|errno| OciError::file("write to", staging.path())(errno.into()))?;
        match fs::rename(staging.path(), &place) {
            // It has gone from there.
            Ok(()) => drop(staging.keep()),
            // Another was first.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(OciError::file("write", &place)(error)),
        }
        find(&place)?.ok_or_else(|| OciError::Unknown(image.id.clone()))
    }

    /// The images that are there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Record>, OciError> {
        let images = self.images();
        let entries = match fs::read_dir(&images) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(OciError::file("read", &images)(error)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(OciError::file("read", &images))?
                .path()
                .join(RECORD);
            match fs::read(&path) {
                Ok(bytes) => {
                    let record = serde_json::from_slice(&bytes).map_err(io::Error::from);
                    records.push(record.map_err(OciError::file("read", &path))?);
                }
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(OciError::file("read", &path)(error)),
            }
        }
        records.sort_by(|a: &Record, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// The one image that `what` means: its name, or the beginning of its digest, four digits or more.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, what: &str) -> Result<Record, OciError> {
        let begins = |record: &Record| what.len() >= 4 && record.id.starts_with(what);
        let mut found: Vec<_> = self.list()?;
        found.retain(|record| record.name == what || begins(record));
        match (found.pop(), found.is_empty()) {
            (Some(record), true) => Ok(record),
            _ => Err(OciError::Unknown(what.to_owned())),
        }
    }

    /// Removes an image.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, record: &Record) -> Result<(), OciError> {
        let place = self.place(&record.id);
        // Out of its place at once: nobody finds a part of it.
        let unpacking = self.unpacking();
        fs::create_dir_all(&unpacking).map_err(OciError::file("create", &unpacking))?;
        let away = TempDir::new_in(&unpacking).map_err(OciError::file("write in", &unpacking))?;
        fs::rename(&place, away.path().join("image")).map_err(OciError::file("remove", &place))?;
        let path = away.path().to_owned();
        away.close().map_err(OciError::file("remove", &path))
    }
}

/// The image at `place`, if it is there.
fn find(place: &Path) -> Result<Option<Kept>, OciError> {
    let read = |name: &str| {
        let path = place.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OciError::file("read", &path)(error)),
        }
    };
    let Some(document) = read("config.json")? else {
        return Ok(None);
    };
    let config = Config::parse(&document).map_err(io::Error::from);
    let text =
        |bytes: Option<Vec<u8>>| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let [passwd, group] = USERS;
    Ok(Some(Kept {
        id: place
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        disk: place.join(DISK),
        config: config.map_err(OciError::file("read", &place.join("config.json")))?,
        passwd: text(read(passwd)?),
        group: text(read(group)?),
    }))
}

/// Removes what processes have left that were killed.
fn sweep(unpacking: &Path) {
    for entry in fs::read_dir(unpacking).into_iter().flatten().flatten() {
        let Ok(lock) = File::open(entry.path()) else {
            continue;
        };
        // One that was made a moment ago may not have its lock yet.
        let old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 10));
        if old && lock.try_lock().is_ok() {
            // What cannot be removed now is so by the next.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Unpacks `image` in `directory`, and has a disk made of it, which stays there alone.
fn make(
    image: &Image,
    name: &str,
    directory: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), OciError> {
    let rootfs = directory.join("rootfs");
    fs::create_dir(&rootfs).map_err(OciError::file("create", &rootfs))?;
    let unpacker =
        Unpacker::new(&rootfs, Allowance::default()).map_err(OciError::file("open", &rootfs))?;
    let count = image.layers.len();
    for (number, layer) in (1..).zip(&image.layers) {
        progress(number, count);
        apply(image, number, layer, &unpacker)?;
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(OciError::file("write", &path))
    };
    for name in USERS {
        let file = Path::new("/etc").join(name);
        if let Some(bytes) = unpacker
            .small_file(&file)
            .map_err(OciError::file("read the image's", &file))?
        {
            write(name, &bytes)?;
        }
    }
    make_disk(&rootfs, &directory.join(DISK))?;
    fs::remove_dir_all(&rootfs).map_err(OciError::file("remove", &rootfs))?;
    write("config.json", &image.document)?;
    let record = Record {
        id: image.id.clone(),
        name: name.to_owned(),
        layers: count,
    };
    let path = directory.join(RECORD);
    let record = serde_json::to_vec(&record).map_err(io::Error::from);
    write(RECORD, &record.map_err(OciError::file("write", &path))?)
}

/// Applies layer `number` and sees that it was what it should be.
fn apply(image: &Image, number: usize, layer: &Layer, unpacker: &Unpacker) -> Result<(), OciError> {
    let damaged = |error: io::Error| OciError::Damaged {
        path: image.path.clone(),
        why: format!("layer {number} ({}): {error}", layer.diff_id),
    };
    let file = image.archive.file(&layer.file).map_err(damaged)?;
    // `docker save` says no digest of the file, which then is the archive itself or has to be verified by that alone.
    let outer = layer.digest.as_ref().unwrap_or(&layer.diff_id);
    let mut file = Hashing::new(file, outer).map_err(damaged)?;
    let plain = decompress_any(&mut file).map_err(damaged)?;
    let mut plain = Hashing::new(plain, &layer.diff_id).map_err(damaged)?;
    unpacker.apply(&mut plain).map_err(|failure| {
        let Failure { entry, source } = failure;
        match entry {
            Some(entry) if source.kind() == io::ErrorKind::InvalidInput => OciError::Entry {
                layer: number,
                entry,
                why: source.to_string(),
            },
            Some(entry) => OciError::Write {
                layer: number,
                entry,
                source,
            },
            None => damaged(source),
        }
    })?;
    plain.verify(&layer.diff_id).map_err(damaged)?;
    drop(plain);
    match &layer.digest {
        Some(digest) => file.verify(digest).map_err(damaged),
        None => Ok(()),
    }
}

/// Has erofs-utils make a disk of a directory, the same for the same directory.
fn make_disk(rootfs: &Path, disk: &Path) -> Result<(), OciError> {
    let made = Command::new("mkfs.erofs")
        .args(["--quiet", "-U", "00000000-0000-0000-0000-000000000000"])
        .args([disk, rootfs])
        .stdin(Stdio::null())
        .output();
    let made = match made {
        Ok(made) => made,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let advice = "mkfs.erofs is not there: install erofs-utils";
            return Err(OciError::Disk(advice.to_owned()));
        }
        Err(error) => return Err(OciError::Disk(format!("mkfs.erofs: {error}"))),
    };
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.map_or_else(|| made.status.to_string(), ToOwned::to_owned);
    Err(OciError::Disk(format!("mkfs.erofs: {last}")))
}
