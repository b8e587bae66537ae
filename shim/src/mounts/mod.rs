//! Mounts of this machine: a container's root file system, directories that a container is given, and taking all of it
//! away again.
//!
//! [`options`] reads mounts as containerd writes them; [`tree`] binds a directory or file elsewhere, read-only from its
//! first moment where asked; [`table`] is the kernel's list of mounts, from which whatever lies below a directory is
//! unmounted.

pub mod options;
pub mod table;
pub mod tree;

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

pub use options::MountRequest;

/// Why something could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The system refused.
    #[error("cannot mount {what} on {}: {source}", target.display())]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where.
        target: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An option that Orlop does not know how to honour.
    #[error("the mount option {0:?} of the snapshot is not supported")]
    Option(String),
    /// Options that do not fit into the page that mount(2) takes, even when shortened.
    #[error(
        "the snapshot has too many layers: its mount options take {0} bytes, and mount(2) takes 4095"
    )]
    TooLong(usize),
}

/// The most bytes of options that mount(2) takes: a page, less the closing zero.
const PAGE: usize = 4095;

/// Mounts `request` on `target`.
///
/// # Errors
/// When an option is not supported, or the system refuses.
pub fn mount_on(request: &MountRequest, target: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Mount {
        what: format!("{} ({})", request.source.display(), request.kind),
        target: target.into(),
        source,
    };
    if request.flags.contains(MsFlags::MS_BIND) {
        let bind = tree::Bind {
            recursive: request.flags.contains(MsFlags::MS_REC),
            readonly: request.flags.contains(MsFlags::MS_RDONLY),
        };
        return tree::bind(&request.source, target, bind).map_err(failed);
    }
    if request.data.len() <= PAGE {
        return mount_data(request, None, &request.data, target).map_err(failed);
    }
    let Some((base, data)) = options::shorten_layers(&request.data) else {
        return Err(MountError::TooLong(request.data.len()));
    };
    if data.len() > PAGE {
        return Err(MountError::TooLong(data.len()));
    }
    mount_data(request, Some(&base), &data, target).map_err(failed)
}

/// Mounts with `data`, the relative paths of which begin at `base`.
fn mount_data(
    request: &MountRequest,
    base: Option<&Path>,
    data: &str,
    target: &Path,
) -> io::Result<()> {
    let work = || -> io::Result<()> {
        if let Some(base) = base {
            // A working directory of this thread alone.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(base)?;
        }
        let data = (!data.is_empty()).then_some(data);
        let kind = Some(request.kind.as_str());
        mount(Some(&request.source), target, kind, request.flags, data)?;
        Ok(())
    };
    if base.is_none() {
        return work();
    }
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread ended")))
}
