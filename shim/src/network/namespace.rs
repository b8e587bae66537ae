//! A network namespace with a name, and work done in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::NetworkError;

/// A network namespace that is not this program's own. It stays for as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When there is none, or it is the one that this program is in: the machine's.
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let this = file.metadata().map(identity).map_err(failed)?;
        let own = fs::metadata("/proc/self/ns/net")
            .map(identity)
            .map_err(failed)?;
        if this == own {
            return Err(NetworkError::HostNetwork);
        }
        Ok(Self {
            file,
            path: path.into(),
        })
    }

    /// The descriptor of it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Does `work` in the namespace: in a thread of its own, since a thread that has entered must not be used for anything else.
    ///
    /// # Errors
    /// When the namespace cannot be entered; what `work` says.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|error| {
                NetworkError::Namespace {
                    path: self.path.clone(),
                    source: error.into(),
                }
            })?;
            work()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("pod-network".into())
                .spawn_scoped(scope, inside)
                .map_err(|source: io::Error| NetworkError::Namespace {
                    path: self.path.clone(),
                    source,
                })?;
            thread.join().unwrap_or(Err(NetworkError::Interrupted))
        })
    }
}
