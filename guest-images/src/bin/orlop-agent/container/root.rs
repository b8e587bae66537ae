//! A container's root file system: a directory of the share, or a disk with a layer in memory above it, which takes what is written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::disks;
use super::spec::BundlePath;
use crate::error::{Error, Result};

/// Where a root file system is.
#[derive(Debug)]
pub enum Root {
    /// In a bundle of the share.
    Shared(BundlePath),
    /// An erofs on the disk with this serial number.
    Disk(String),
}

impl Root {
    /// As a request says it: one of the two.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for neither, both, or what cannot be one.
    pub fn parse(bundle: &str, disk: &str) -> Result<Self> {
        if disk.is_empty() {
            return BundlePath::parse(bundle).map(Self::Shared);
        }
        if !bundle.is_empty() || disk.len() > disks::MAX_SERIAL {
            return Err(Error::Invalid(
                "the root file system is either a bundle or a disk by its serial number".to_owned(),
            ));
        }
        Ok(Self::Disk(disk.to_owned()))
    }

    /// Where the container's process finds it; `own` is the agent's directory for the container.
    pub fn path(&self, share: &Path, own: &Path) -> PathBuf {
        match self {
            Self::Shared(bundle) => bundle.rootfs(share),
            Self::Disk(_) => own.join("rootfs"),
        }
    }

    /// Makes it be there.
    ///
    /// # Errors
    /// When there is no such disk, or it cannot be mounted.
    pub fn mount(&self, own: &Path) -> Result<()> {
        let Self::Disk(serial) = self else {
            return Ok(());
        };
        let disk = disks::find(serial)?;
        let disk = disk.ok_or_else(|| disks::missing(serial))?.device();
        let [lower, layer, rootfs] = ["lower", "layer", "rootfs"].map(|name| own.join(name));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        make(&[&lower, &layer, &rootfs])?;
        mount_at(&disk, &lower, "erofs", MsFlags::MS_RDONLY, "")?;
        let memory = Path::new("tmpfs");
        mount_at(memory, &layer, "tmpfs", MsFlags::empty(), "mode=0700")?;
        make(&[&upper, &work])?;
        copy_owner(&lower, &upper).map_err(|error| Error::system(upper.display(), error))?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let overlay = Path::new("overlay");
        mount_at(overlay, &rootfs, "overlay", MsFlags::empty(), &options)
    }

    /// Takes away what [`Root::mount`] has mounted, as far as it is there.
    pub fn unmount(own: &Path) {
        for name in ["rootfs", "layer", "lower"] {
            // Nothing is mounted there for a root in the share.
            let _ = umount2(&own.join(name), MntFlags::MNT_DETACH);
        }
    }
}

fn make(directories: &[&Path]) -> Result<()> {
    directories.iter().try_for_each(|directory| {
        fs::create_dir_all(directory).map_err(|error| Error::system(directory.display(), error))
    })
}

/// The root directory is the upper layer's: it is as the disk has it.
fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let data = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(data.uid()), Some(data.gid()))?;
    fs::set_permissions(to, data.permissions())
}

fn mount_at(source: &Path, place: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), place, Some(kind), flags, Some(options)).map_err(|errno| {
        Error::system(
            format_args!("cannot mount {kind} as the root file system"),
            errno,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_in_the_share_or_on_a_disk() {
        let own = Path::new("/own");
        let path = |root: Root| root.path(Path::new("/share"), own);
        assert_eq!(
            path(Root::parse("c1", "").unwrap()),
            Path::new("/share/c1/rootfs")
        );
        assert_eq!(
            path(Root::parse("", "image").unwrap()),
            Path::new("/own/rootfs")
        );
        for (bundle, disk) in [("", ""), ("c1", "image"), ("", "123456789012345678901")] {
            assert!(Root::parse(bundle, disk).is_err(), "{bundle:?} {disk:?}");
        }
    }
}
