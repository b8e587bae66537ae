//! Layers applied to a directory (OCI image specification, "Image Layer Filesystem Changeset").
//!
//! Each name of a layer is looked up as the container would see it: the root file system is `/`, wherever links lead
//! (openat2(2), `RESOLVE_IN_ROOT`). So an absolute link, or one with `..`, leads to a place in the root file system, as it does
//! in the container. A name that has `..` itself is refused: no program that writes layers makes one.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use pathrs::Root;
use pathrs::flags::OpenFlags;
use tar::EntryType;

use super::digest::wrong;

/// The beginning of the name of an entry that takes a file of a lower layer away.
const WHITEOUT: &[u8] = b".wh.";
/// The name of an entry that takes all of lower layers out of its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The beginning of names that are notes of a file system to itself.
const NOTE: &[u8] = b".wh..wh.";
/// The beginning of a PAX record that is an extended attribute.
const XATTR: &str = "SCHILY.xattr.";

/// Why an entry was not applied.
#[derive(Debug)]
pub struct Failure {
    /// Its name; none when the archive itself is damaged.
    pub entry: Option<String>,
    /// What is wrong: `InvalidInput` when the entry is refused, else what the system says.
    pub source: io::Error,
}

/// A root file system on its way.
pub struct Unpacker {
    root: Root,
}

impl Unpacker {
    /// Unpacks into the directory at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(path: &Path) -> io::Result<Self> {
        let root = Root::open(path).map_err(system)?;
        Ok(Self { root })
    }

    /// Applies the next layer, a tar archive.
    ///
    /// # Errors
    /// When an entry is refused or cannot be written.
    pub fn apply(&self, layer: impl Read) -> Result<(), Failure> {
        let damaged = |source| Failure {
            entry: None,
            source,
        };
        let mut archive = tar::Archive::new(layer);
        let mut applied = Applied::default();
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
            self.apply_entry(&name, &mut entry, &mut applied)
                .map_err(|source| Failure {
                    entry: Some(name.display().to_string()),
                    source,
                })?;
        }
        // A directory's time is its own, not that of what was put into it; the deepest first.
        for (path, time) in applied.directories.into_iter().rev() {
            let set = self.parent(&path).and_then(|(parent, name)| {
                Ok(utimensat(
                    &parent,
                    name,
                    &time,
                    &time,
                    UtimensatFlags::NoFollowSymlink,
                )?)
            });
            match set {
                // Taken away again by a later entry.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                set => set.map_err(|source| Failure {
                    entry: Some(path.display().to_string()),
                    source,
                })?,
            }
        }
        Ok(())
    }

    /// Reads the file at `path`, as far as it is one; what it has beyond 1 MiB is left.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn small_file(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        // A FIFO would have us wait for a writer.
        let flags = OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK;
        let file = match self.root.open_subpath(path, flags).map_err(system) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn apply_entry(
        &self,
        name: &Path,
        entry: &mut tar::Entry<impl Read>,
        applied: &mut Applied,
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = plain(name)?;
        let Some(last) = path.file_name() else {
            // The root directory itself.
            let place = self.root.as_fd().try_clone_to_owned()?;
            let time = Attributes::read(entry)?.set(&place, OsStr::new("."), kind)?;
            utimensat(&place, ".", &time, &time, UtimensatFlags::NoFollowSymlink)?;
            return Ok(());
        };
        if last.as_bytes() == OPAQUE {
            let directory = path.parent().unwrap_or(Path::new(""));
            return self.hide_all(directory, applied);
        }
        if last.as_bytes().starts_with(NOTE) {
            return Ok(());
        }
        if let Some(hidden) = last.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = OsStr::from_bytes(hidden);
            if hidden.is_empty() || hidden == "." || hidden == ".." {
                return Err(refused("it takes away what has no name"));
            }
            let hidden = path.with_file_name(hidden);
            return self.hide(&hidden, applied);
        }
        let parent = self.make_parent(&path)?;
        create(self, &parent, last, entry)?;
        if kind != EntryType::Link {
            let time = Attributes::read(entry)?.set(&parent, last, kind)?;
            if kind == EntryType::Directory {
                applied.directories.push((path.clone(), time));
            } else {
                let no_follow = UtimensatFlags::NoFollowSymlink;
                utimensat(&parent, last, &time, &time, no_follow)?;
            }
        }
        applied.add(&path);
        Ok(())
    }

    /// The directory of `path`, opened, and the name in it.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or_else(|| refused("it has no name"))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let handle = self.root.resolve(Path::new("/").join(directory));
        Ok((handle.map_err(system)?.into(), name))
    }

    /// The same, made if it is not there: some layers leave directories out.
    fn make_parent(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.parent(path) {
            Ok((parent, _)) => Ok(parent),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                use std::os::unix::fs::PermissionsExt as _;
                let directory = Path::new("/").join(path.parent().unwrap_or(Path::new("")));
                let permissions = std::fs::Permissions::from_mode(0o755);
                let handle = self.root.mkdir_all(&directory, &permissions);
                Ok(handle.map_err(system)?.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes `path` of the lower layers away; what this layer has put there stays.
    fn hide(&self, path: &Path, applied: &Applied) -> io::Result<()> {
        if applied.has(path) {
            return Ok(());
        }
        let (parent, name) = match self.parent(path) {
            Ok(found) => found,
            // A whiteout of nothing says nothing.
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        remove(&parent, name)
    }

    /// Takes everything of the lower layers out of `directory`.
    fn hide_all(&self, directory: &Path, applied: &Applied) -> io::Result<()> {
        let opened = self
            .root
            .open_subpath(Path::new("/").join(directory), OpenFlags::O_DIRECTORY);
        let opened = match opened.map_err(system) {
            Ok(opened) => opened,
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        for name in names(opened.into())? {
            let path = directory.join(&name);
            if !applied.has(&path) {
                self.hide(&path, applied)?;
                continue;
            }
            let (parent, name) = self.parent(&path)?;
            if kind_of(&parent, name)? == Some(SFlag::S_IFDIR) {
                self.hide_all(&path, applied)?;
            }
        }
        Ok(())
    }
}

/// Whether there is nothing at a path: a layer that puts a file in a directory's place may still name what was in that.
fn is_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// What a layer has put where.
#[derive(Default)]
struct Applied {
    paths: HashSet<PathBuf>,
    directories: Vec<(PathBuf, TimeSpec)>,
}

impl Applied {
    fn add(&mut self, path: &Path) {
        for path in path.ancestors() {
            if !self.paths.insert(path.to_owned()) {
                break;
            }
        }
    }

    fn has(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }
}

/// A number of a header. Writers leave a field empty for zero, which is malformed to the letter.
fn number(field: &[u8], read: io::Result<u64>) -> io::Result<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    read
}

/// What a file has besides its content.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    time: TimeSpec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    fn read(entry: &mut tar::Entry<impl Read>) -> io::Result<Self> {
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
    fn set(self, parent: &OwnedFd, name: &OsStr, kind: EntryType) -> io::Result<TimeSpec> {
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

/// Puts what `entry` says at `name` in `parent`, in place of what is there.
fn create(
    unpacker: &Unpacker,
    parent: &OwnedFd,
    name: &OsStr,
    entry: &mut tar::Entry<impl Read>,
) -> io::Result<()> {
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
    if kind == EntryType::Link
        && plain(&link)?
            == plain(&PathBuf::from(OsString::from_vec(
                entry.path_bytes().into_owned(),
            )))?
    {
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

/// What is at `name` in `directory`, if anything is.
fn kind_of(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<SFlag>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(
            SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT,
        )),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes `name` and all below it, if it is there.
fn remove(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
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
fn names(directory: OwnedFd) -> io::Result<Vec<OsString>> {
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

/// `name` from the root, without `.`.
fn plain(name: &Path) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused("its name has `..` in it"));
            }
        }
    }
    Ok(path)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// What the system said.
fn system(error: pathrs::error::Error) -> io::Error {
    match error.kind() {
        pathrs::error::ErrorKind::OsError(Some(code)) => io::Error::from_raw_os_error(code),
        _ => io::Error::other(error),
    }
}
