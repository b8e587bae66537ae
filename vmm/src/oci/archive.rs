//! The files of an image: in a directory, or in a tar archive, which may be compressed.
//!
//! A tar archive has no index, so it is read through once to make one; a compressed one is decompressed for that into a file
//! without a name, which is gone when we are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Take};
use std::path::{Component, Path, PathBuf};

use super::OciError;
use super::digest::wrong;
use super::layer::{self, Compression};

/// What is read into memory whole (indexes, manifests, configurations) is not larger: 4 MiB, as registries have it.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Links that lead to links: `docker save` has written links to a layer that it has already.
const MAX_HOPS: usize = 8;

/// An image's files.
pub enum Archive {
    /// Those of a directory.
    Directory(PathBuf),
    /// Those of a tar archive.
    Tar {
        /// The archive, not compressed.
        file: File,
        /// What is in it, by name.
        entries: HashMap<PathBuf, Entry>,
    },
}

/// An entry of a tar archive.
pub enum Entry {
    /// A file: where its content is.
    File {
        /// Bytes from the beginning of the archive.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Another name of another entry.
    Link(PathBuf),
}

impl Archive {
    /// Opens the directory or archive at `path`. A compressed one is decompressed into `scratch`.
    ///
    /// # Errors
    /// When it cannot be read, or is no archive.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, OciError> {
        let mut file = File::open(path).map_err(OciError::file("open", path))?;
        let kind = file
            .metadata()
            .map_err(OciError::file("examine", path))?
            .file_type();
        if kind.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if !kind.is_file() {
            let why = "it is neither a directory nor a file".to_owned();
            return Err(OciError::NoImage {
                path: path.into(),
                why,
            });
        }
        let read = OciError::file("read", path);
        let compression = match Compression::of(&mut file) {
            Ok(compression) => compression,
            Err(error) => return Err(read(error)),
        };
        if compression != Compression::None {
            std::fs::create_dir_all(scratch).map_err(OciError::file("create", scratch))?;
            let mut plain =
                tempfile::tempfile_in(scratch).map_err(OciError::file("write in", scratch))?;
            layer::decompress(file, compression)
                .and_then(|mut from| io::copy(&mut from, &mut plain))
                .map_err(OciError::file("decompress", path))?;
            file = plain;
        }
        let entries = index(&mut file).map_err(|error| OciError::NoImage {
            path: path.into(),
            why: format!("it is no whole tar archive ({error})"),
        })?;
        Ok(Self::Tar { file, entries })
    }

    /// Opens the file `name` for reading.
    ///
    /// # Errors
    /// `NotFound` when there is none; what the system says.
    pub fn file(&self, name: &Path) -> io::Result<Take<File>> {
        match self {
            Self::Directory(directory) => {
                let name = below(name).ok_or_else(|| wrong("the name leads out of the image"))?;
                let file = File::open(directory.join(name))?;
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(wrong("it is not a file"));
                }
                Ok(file.take(metadata.len()))
            }
            Self::Tar { file, entries } => {
                let (offset, length) = find(entries, name)?;
                // Opened anew, for a position of its own.
                use std::os::fd::AsRawFd as _;
                let mut file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                file.seek(SeekFrom::Start(offset))?;
                Ok(file.take(length))
            }
        }
    }

    /// Reads the document `name` whole.
    ///
    /// # Errors
    /// As [`Archive::file`], and when it is too large.
    pub fn document(&self, name: &Path) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        if file.limit() > MAX_DOCUMENT {
            return Err(wrong(format!("it is larger than {MAX_DOCUMENT} bytes")));
        }
        let mut bytes = Vec::new();
        let length = file.limit();
        if file.take(MAX_DOCUMENT).read_to_end(&mut bytes)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// Whether there is a file `name`.
    pub fn has(&self, name: &Path) -> bool {
        self.file(name).is_ok()
    }
}

/// `name` without `.`, or nothing if it goes up or is absolute.
fn below(name: &Path) -> Option<PathBuf> {
    name.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| matches!(part, Component::Normal(_)).then_some(part))
        .collect()
}

/// `link` as seen from the directory of `entry`, as far as it stays in the archive.
fn beside(entry: &Path, link: &Path) -> Option<PathBuf> {
    let mut path = entry.parent()?.to_owned();
    for part in link.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop().then_some(())?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn find(entries: &HashMap<PathBuf, Entry>, name: &Path) -> io::Result<(u64, u64)> {
    let mut name = below(name).ok_or_else(|| wrong("the name leads out of the image"))?;
    for _ in 0..MAX_HOPS {
        match entries.get(&name) {
            Some(&Entry::File { offset, length }) => return Ok((offset, length)),
            Some(Entry::Link(target)) => name.clone_from(target),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
    }
    Err(wrong("it is a link to itself"))
}

fn index(file: &mut File) -> io::Result<HashMap<PathBuf, Entry>> {
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut entries = HashMap::new();
    for entry in tar::Archive::new(&*file).entries_with_seek()? {
        let entry = entry?;
        let Some(name) = below(&entry.path()?) else {
            continue;
        };
        let kind = entry.header().entry_type();
        let link = entry.link_name()?;
        let found = if kind.is_file() {
            let (offset, length) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(length).is_none_or(|until| until > end) {
                return Err(wrong(format!("it ends within {}", name.display())));
            }
            Entry::File { offset, length }
        } else if let Some(target) = link.and_then(|link| match kind {
            tar::EntryType::Symlink => beside(&name, &link),
            tar::EntryType::Link => below(&link),
            _ => None,
        }) {
            Entry::Link(target)
        } else {
            continue;
        };
        entries.insert(name, found);
    }
    Ok(entries)
}
