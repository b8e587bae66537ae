//! The host's side of a disk: a raw image or a block device, opened and locked.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orlop_proto::files;

use crate::config::HostFile;

/// The unit of virtio-blk's sizes and places in bytes, whatever the disk's own block size is (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// A serial number: up to 20 bytes of ASCII, padded with zeros (virtio 1.2, 5.2.6).
pub type Serial = [u8; 20];

/// A disk that this VM alone may write to.
#[derive(Debug)]
pub struct Image {
    /// The file; it holds the lock.
    pub file: File,
    /// Its size in sectors; never zero.
    pub sectors: u64,
    /// Whether it must not be written to.
    pub readonly: bool,
    /// What distinguishes the disk from others, as its serial number.
    pub id: Serial,
}

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is missing, forbidden, or whatever the host says.
    #[error("cannot open the disk {path}{}", if *.readonly { "" } else { " for writing" })]
    Open {
        /// The disk.
        path: PathBuf,
        /// Whether only reading was asked for.
        readonly: bool,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// No file at all.
    #[error("the disk fd={fd} is no open file of this process")]
    NotOpen {
        /// The number.
        fd: RawFd,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Open for too little.
    #[error(
        "the disk fd={fd} is not open for reading{}", if *.readonly { "" } else { " and writing: open it for both, or say readonly" }
    )]
    Mode {
        /// The number.
        fd: RawFd,
        /// Whether reading would do.
        readonly: bool,
    },
    /// A directory, a pipe or the like.
    #[error("the disk {0} is neither a regular file nor a block device")]
    Kind(PathBuf),
    /// Nothing there to be a disk.
    #[error(
        "the disk {0} is empty: give it a size in whole sectors of 512 bytes, as with truncate --size=1G"
    )]
    Empty(PathBuf),
    /// A last part that is no whole sector, which a guest could not reach (virtio 1.2, 5.2.4).
    #[error(
        "the disk {path} has {size} bytes, which are not whole sectors of 512: lengthen it with truncate --size=%512"
    )]
    Size {
        /// The disk.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Another VM has it.
    #[error(
        "the disk {0} is in use by another program; one that only reads may be shared among VMs that all say readonly"
    )]
    InUse(PathBuf),
    /// Its size or its lock could not be had.
    #[error("cannot {what} the disk {path}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// The disk.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

impl Image {
    /// Opens and locks `path`. The bytes are taken as they are: a format is never guessed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, readonly: bool) -> Result<Self, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(!readonly)
            // Files and block devices do not care, but opening a pipe without it would wait for somebody at its other end.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| OpenError::Open {
                path: path.into(),
                readonly,
                source,
            })?;
        Image::of(file, path, readonly)
    }

    /// Locks a file that this process has open already, and makes it one of its own. The lock is the open file's: it ends when nobody has that
    /// open any more, whoever handed it over included.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn take(fd: RawFd, readonly: bool) -> Result<Self, OpenError> {
        let not_open = |source| OpenError::NotOpen { fd, source };
        let file = File::from(files::copy(fd).map_err(not_open)?);
        // SAFETY: the command reads nothing of this process's memory.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        let allowed = match flags & libc::O_ACCMODE {
            libc::O_RDWR => true,
            libc::O_RDONLY => readonly,
            _ => false,
        };
        if flags < 0 || !allowed {
            return Err(OpenError::Mode { fd, readonly });
        }
        Image::of(file, &HostFile::Given(fd).name(), readonly)
    }

    fn of(mut file: File, path: &Path, readonly: bool) -> Result<Self, OpenError> {
        let prepare = |what| {
            move |source| OpenError::Prepare {
                what,
                path: path.into(),
                source,
            }
        };
        let metadata = file.metadata().map_err(prepare("examine"))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind(path.into()));
        }
        match lock(&file, readonly) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(OpenError::InUse(path.into()));
            }
            Err(error) => return Err(prepare("lock")(error)),
        }
        // A block device's metadata says 0.
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(prepare("find the size of"))?;
        if size == 0 {
            return Err(OpenError::Empty(path.into()));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(OpenError::Size {
                path: path.into(),
                size,
            });
        }
        make_blocking(&file).map_err(prepare("prepare"))?;
        Ok(Image {
            file,
            sectors: size / SECTOR,
            readonly,
            id: id(metadata.dev(), metadata.ino()),
        })
    }
}

/// A read lock for a disk that is only read, else a write lock, on the whole file. It belongs to the open file, not to the
/// process (F_OFD_SETLK), and ends with it.
fn lock(file: &File, readonly: bool) -> io::Result<()> {
    let kind = if readonly {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    // SAFETY: all zeros is a valid `flock`: from the beginning (SEEK_SET, 0) to the end, however far (length 0).
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    // SAFETY: the command reads one `flock`, and keeps no pointer to it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes back O_NONBLOCK, with which the file was opened: an io_uring would answer "try again" where it should wait for the disk.
fn make_blocking(file: &File) -> io::Result<()> {
    // SAFETY: the command takes a number only; of the flags that can be changed, none was set but O_NONBLOCK.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A serial number that stays the same while the file does, and tells the guest nothing of the host: FNV-1a of what
/// identifies the file.
fn id(device: u64, inode: u64) -> Serial {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in device.to_le_bytes().into_iter().chain(inode.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    let mut id = [0; 20];
    for (place, digit) in id.iter_mut().zip(format!("{hash:016x}").bytes()) {
        *place = digit;
    }
    id
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(size: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; size]).unwrap();
        file
    }

    #[test]
    fn the_size_is_in_whole_sectors() {
        let open = |size| Image::open(image(size).path(), true);
        assert_eq!(open(512).unwrap().sectors, 1);
        assert_eq!(open(1 << 20).unwrap().sectors, 2048);
        for size in [1, 511, 513, 1023] {
            let error = open(size).unwrap_err().to_string();
            assert!(error.contains(&format!("has {size} bytes")), "{error}");
            assert!(error.contains("truncate --size=%512"), "{error}");
        }
        assert!(matches!(open(0).unwrap_err(), OpenError::Empty(_)));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Image::open(&dir.path().join("none"), true).unwrap_err();
        assert!(matches!(missing, OpenError::Open { .. }), "{missing}");
        let directory = Image::open(dir.path(), true).unwrap_err();
        assert!(matches!(directory, OpenError::Kind(_)), "{directory}");
        let character = Image::open(Path::new("/dev/null"), false).unwrap_err();
        assert!(matches!(character, OpenError::Kind(_)), "{character}");

        // Nobody is at its other end, so this would wait for ever if it waited.
        let pipe = dir.path().join("pipe");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let pipe = Image::open(&pipe, true).unwrap_err();
        assert!(matches!(pipe, OpenError::Kind(_)), "{pipe}");
    }

    #[test]
    fn an_open_file_is_a_disk_as_far_as_it_is_open() {
        let file = image(1024);
        let open = |write| File::options().read(true).write(write).open(file.path());
        let (reading, both) = (open(false).unwrap(), open(true).unwrap());
        let take = |file: &File, readonly| Image::take(file.as_raw_fd(), readonly);
        let refused = take(&reading, false).unwrap_err();
        assert!(matches!(refused, OpenError::Mode { .. }), "{refused}");
        assert_eq!(take(&reading, true).unwrap().sectors, 2);
        assert!(
            matches!(take(&both, false).unwrap_err(), OpenError::InUse(_)),
            "whoever hands it over still has it"
        );
        drop(reading);
        let disk = take(&both, false).unwrap();
        drop(both);
        assert_eq!(disk.file.metadata().unwrap().len(), 1024, "it is its own");
        let by_path = Image::open(file.path(), true).unwrap_err();
        let path = file.path().to_str().unwrap();
        assert!(by_path.to_string().contains(path), "{by_path}");
        for fd in [-1, 9999] {
            let absent = Image::take(fd, true).unwrap_err();
            assert!(matches!(absent, OpenError::NotOpen { .. }), "{absent}");
        }
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let file = image(512);
        let in_use =
            |readonly| matches!(Image::open(file.path(), readonly), Err(OpenError::InUse(_)));
        let writer = Image::open(file.path(), false).unwrap();
        assert!(in_use(false));
        assert!(in_use(true));
        drop(writer);
        let readers = [(); 2].map(|()| Image::open(file.path(), true).unwrap());
        assert!(in_use(false));
        drop(readers);
        assert!(!in_use(false));
    }

    #[test]
    fn disks_are_told_apart() {
        let (one, two) = (image(512), image(512));
        let id = |file: &tempfile::NamedTempFile| Image::open(file.path(), true).unwrap().id;
        assert_eq!(id(&one), id(&one));
        assert_ne!(id(&one), id(&two));
    }
}
