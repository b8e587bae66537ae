//! Layers applied to a directory (OCI image specification, "Image Layer Filesystem Changeset").
//!
//! Each name of a layer is looked up as the container would see it: the root file system is `/`, wherever links lead
//! (openat2(2), `RESOLVE_IN_ROOT`). So an absolute link, or one with `..`, leads to a place in the root file system, as it does
//! in the container. A name that has `..` itself is refused: no program that writes layers makes one.

mod attributes;
mod create;
mod tree;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, utimensat};
use nix::sys::time::TimeSpec;
use pathrs::Root;
use pathrs::flags::OpenFlags;
use tar::EntryType;

use super::allowance::Allowance;
use attributes::Attributes;
use create::create;
use tree::{kind_of, names, remove};

/// The beginning of the name of an entry that takes a file of a lower layer away.
const WHITEOUT: &[u8] = b".wh.";
/// The name of an entry that takes all of lower layers out of its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The beginning of names that are notes of a file system to itself.
const NOTE: &[u8] = b".wh..wh.";

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
    allowance: Allowance,
}

impl Unpacker {
    /// Unpacks all layers of an image into the directory at `path`, as far as `allowance` goes.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(path: &Path, allowance: Allowance) -> io::Result<Self> {
        let root = Root::open(path).map_err(system)?;
        Ok(Self { root, allowance })
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
        for (inode, (path, time)) in applied.directories {
            self.set_time(inode, &path, time)
                .map_err(|source| Failure {
                    entry: Some(path.display().to_string()),
                    source,
                })?;
        }
        Ok(())
    }

    /// Gives a directory its time, unless it was taken away by a later entry.
    fn set_time(&self, inode: u64, path: &Path, time: TimeSpec) -> io::Result<()> {
        let directory: OwnedFd = match self.root.resolve(Path::new("/").join(path)) {
            Ok(handle) => handle.into(),
            Err(error) => {
                let error = system(error);
                return if is_nothing(&error) {
                    Ok(())
                } else {
                    Err(error)
                };
            }
        };
        let found = fstat(&directory)?;
        if found.st_ino == inode && is_directory(&found) {
            utimensat(
                &directory,
                ".",
                &time,
                &time,
                UtimensatFlags::NoFollowSymlink,
            )?;
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
        self.allowance.take(entry.size())?;
        let path = plain(name)?;
        let Some(last) = path.file_name() else {
            // The root directory itself.
            let place = self.root.as_fd().try_clone_to_owned()?;
            let time = Attributes::read(entry)?.set(&place, OsStr::new("."), kind)?;
            return applied.names(&place, &path, time);
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
        applied.changes(&parent, &path)?;
        create(self, &parent, &path, entry)?;
        if kind != EntryType::Link {
            let time = Attributes::read(entry)?.set(&parent, last, kind)?;
            if kind == EntryType::Directory {
                let flags =
                    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let made = openat(&parent, last, flags, Mode::empty())?;
                applied.names(&made, &path, time)?;
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
    fn hide(&self, path: &Path, applied: &mut Applied) -> io::Result<()> {
        if applied.has(path) {
            return Ok(());
        }
        let (parent, name) = match self.parent(path) {
            Ok(found) => found,
            // A whiteout of nothing says nothing.
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        applied.changes(&parent, path)?;
        remove(&parent, name)
    }

    /// Takes everything of the lower layers out of `directory`.
    fn hide_all(&self, directory: &Path, applied: &mut Applied) -> io::Result<()> {
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

fn is_directory(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
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
    /// The times that directories have in the end, by their inodes: a directory's time is its own, not that of what was put into it or taken
    /// from it. A path, which may lead through links, leads to it.
    directories: HashMap<u64, (PathBuf, TimeSpec)>,
}

impl Applied {
    /// The layer says itself which time the directory has.
    fn names(&mut self, directory: &OwnedFd, path: &Path, time: TimeSpec) -> io::Result<()> {
        let inode = fstat(directory)?.st_ino;
        self.directories.insert(inode, (path.to_owned(), time));
        Ok(())
    }

    /// Something in the directory of `path`, which is open as `parent`, comes, or goes.
    fn changes(&mut self, parent: &OwnedFd, path: &Path) -> io::Result<()> {
        let found = fstat(parent)?;
        let time = TimeSpec::new(found.st_mtime, found.st_mtime_nsec);
        let parent = path.parent().unwrap_or(Path::new(""));
        self.directories
            .entry(found.st_ino)
            .or_insert_with(|| (parent.to_owned(), time));
        Ok(())
    }

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

/// Nothing is wrong with this machine: the entry is not taken.
pub(super) fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// What the system said.
fn system(error: pathrs::error::Error) -> io::Error {
    match error.kind() {
        pathrs::error::ErrorKind::OsError(Some(code)) => io::Error::from_raw_os_error(code),
        _ => io::Error::other(error),
    }
}
