//! The directory that a pod's guest sees by virtio-fs.
//!
//! It exists twice. `share/` is plain: the shim makes directories there. `shared/` is the same directory bound once
//! more, read-only, and everything is mounted in there; virtiofsd serves it from a mount namespace of its own, into
//! which later mounts spread because `shared/` is a shared mount. So a guest, whatever it does, cannot leave a
//! file in the host's memory: it can write where a container's root file system or a volume is mounted, and nowhere else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::state::{StateDir, remove_entry};
use crate::mounts::{MountError, MountRequest, mount_on, table, tree};
use crate::spec::HostBind;

/// A pod's share.
#[derive(Clone, Debug)]
pub struct Share {
    plain: PathBuf,
    mounted: PathBuf,
}

/// Why something cannot be shared with the guest.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The file system refused.
    #[error("cannot prepare {}: {source}", path.display())]
    Prepare {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that a container is to be given cannot be had.
    #[error("cannot give {} to the container: {source}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The work was not done to its end.
    #[error("preparing the share was interrupted")]
    Interrupted,
}

impl Share {
    /// The share of the pod with this directory.
    pub fn of(directory: &StateDir) -> Self {
        Self {
            plain: directory.file("share"),
            mounted: directory.file("shared"),
        }
    }

    /// The directory that virtiofsd serves.
    pub fn served(&self) -> &Path {
        &self.mounted
    }

    /// Makes both directories. May be called again.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare(&self) -> Result<(), ShareError> {
        let make = || {
            for directory in [&self.plain, &self.mounted] {
                if !directory.exists() {
                    fs::create_dir(directory)?;
                }
            }
            if fs::metadata(&self.plain)?.same_file(&fs::metadata(&self.mounted)?) {
                return Ok(());
            }
            tree::bind_shared_readonly(&self.plain, &self.mounted)
        };
        make().map_err(|source| ShareError::Prepare {
            path: self.mounted.clone(),
            source,
        })
    }

    /// Mounts the root file system and the binds of container `id`. What has been mounted when one fails is
    /// taken away again.
    ///
    /// # Errors
    /// When a source is not there or cannot be mounted.
    pub fn add(
        &self,
        id: &str,
        rootfs: &[MountRequest],
        binds: &[HostBind],
    ) -> Result<(), ShareError> {
        let added = self.try_add(id, rootfs, binds);
        if added.is_err()
            && let Err(error) = self.remove(id)
        {
            log::error!("cannot undo the mounts of {id}: {error}");
        }
        added
    }

    fn try_add(
        &self,
        id: &str,
        rootfs: &[MountRequest],
        binds: &[HostBind],
    ) -> Result<(), ShareError> {
        let plain = self.plain.join(id);
        let prepare = |path: &Path, make: &dyn Fn(&Path) -> io::Result<()>| {
            make(path).map_err(|source| ShareError::Prepare {
                path: path.into(),
                source,
            })
        };
        prepare(&plain, &|path| fs::create_dir(path))?;
        prepare(&plain.join("rootfs"), &|path| fs::create_dir(path))?;
        prepare(&plain.join("mounts"), &|path| fs::create_dir(path))?;
        let mounted = self.mounted.join(id);
        for request in rootfs {
            mount_on(request, &mounted.join("rootfs"))?;
        }
        for (n, bind) in binds.iter().enumerate() {
            let source = |source| ShareError::Source {
                path: bind.source.clone(),
                source,
            };
            let is_directory = fs::metadata(&bind.source).map_err(source)?.is_dir();
            let name = Path::new("mounts").join(n.to_string());
            prepare(&plain.join(&name), &|path| {
                if is_directory {
                    fs::create_dir(path)
                } else {
                    fs::File::create(path).map(drop)
                }
            })?;
            let how = tree::Bind {
                recursive: bind.recursive,
                readonly: bind.readonly,
            };
            tree::bind(&bind.source, &mounted.join(&name), how).map_err(source)?;
        }
        Ok(())
    }

    /// Unmounts everything of container `id` and removes its directory. One that is not there is no error.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        table::unmount_below(&self.mounted.join(id))?;
        remove_container(&self.plain.join(id))
    }
}

/// Removes a container's directory, in which nothing is mounted any more. Directories with content stay, as an error.
pub(super) fn remove_container(directory: &Path) -> io::Result<()> {
    let mounts = directory.join("mounts");
    if mounts.exists() {
        for entry in fs::read_dir(&mounts)? {
            remove_entry(&entry?.path())?;
        }
    }
    remove_entry(&mounts)?;
    remove_entry(&directory.join("rootfs"))?;
    remove_entry(directory)
}

/// Whether two names are of the same file.
trait SameFile {
    fn same_file(&self, other: &Self) -> bool;
}

impl SameFile for fs::Metadata {
    fn same_file(&self, other: &Self) -> bool {
        use std::os::unix::fs::MetadataExt;
        (self.dev(), self.ino()) == (other.dev(), other.ino())
    }
}

#[cfg(test)]
mod tests;
