//! A file of the host's: by its path, or one that whoever started the VMM has opened for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use orlop_proto::files;

use super::ParseError;
use super::parse::descriptor;

/// Where a file is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostFile {
    /// The one at this path.
    Path(PathBuf),
    /// One that this process has open already.
    Given(RawFd),
}

impl HostFile {
    /// What messages call it. Where `/proc` does not say a path, a descriptor's number must do.
    pub fn name(&self) -> PathBuf {
        match self {
            HostFile::Path(path) => path.clone(),
            HostFile::Given(number) => std::fs::read_link(format!("/proc/self/fd/{number}"))
                .unwrap_or_else(|_| format!("fd={number}").into()),
        }
    }

    /// The file, from its first byte on: a VM that boots again reads what was handed over once more.
    ///
    /// # Errors
    /// When it cannot be opened, or is a directory.
    pub fn open(&self) -> io::Result<File> {
        let mut open = match self {
            // Nobody need be at the other end of a pipe.
            HostFile::Path(path) => OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)?,
            HostFile::Given(number) => File::from(files::copy(*number)?),
        };
        if open.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        open.rewind()?;
        Ok(open)
    }

    /// The descriptor, if it is open already.
    pub fn given(&self) -> Option<RawFd> {
        match self {
            HostFile::Path(_) => None,
            HostFile::Given(number) => Some(*number),
        }
    }
}

/// `FILE` or `fd=N`. (A file of such a name is `./fd=N`.)
impl FromStr for HostFile {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.strip_prefix("fd=") {
            Some(number) => Ok(HostFile::Given(descriptor(number)?)),
            None if text.is_empty() => Err(ParseError::new("write a file's path, or fd=N")),
            None => Ok(HostFile::Path(text.into())),
        }
    }
}

impl From<PathBuf> for HostFile {
    fn from(path: PathBuf) -> Self {
        HostFile::Path(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_by_its_path_or_its_number() {
        let parse = |text: &str| text.parse::<HostFile>();
        assert_eq!(parse("fd=3").unwrap(), HostFile::Given(3));
        assert_eq!(parse("./fd=3").unwrap(), HostFile::Path("./fd=3".into()));
        assert_eq!(parse("/boot/k").unwrap().name(), PathBuf::from("/boot/k"));
        for wrong in ["", "fd=", "fd=2", "fd=-1", "fd=x", "fd=99999999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pipe_without_a_writer_is_opened_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        // It has no beginning to go back to.
        assert!(HostFile::Path(path).open().is_err());
    }

    #[test]
    fn a_number_that_is_not_open_is_its_own_name() {
        assert_eq!(HostFile::Given(9999).name(), PathBuf::from("fd=9999"));
    }
}
