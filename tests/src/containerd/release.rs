//! Which containerd: Debian's own, or one that was built for the testbed.

use std::path::{Path, PathBuf};

/// A containerd with its client and the plugins for its pods' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The daemon.
    pub(super) containerd: PathBuf,
    /// Its client.
    pub(super) ctr: PathBuf,
    /// The directory of the plugins, and of what belongs to the daemon: the first to be searched for a program.
    pub(super) directory: PathBuf,
}

impl Release {
    /// The one that Debian's packages install.
    #[must_use]
    pub fn debian() -> Self {
        Self {
            containerd: "/usr/bin/containerd".into(),
            ctr: "/usr/bin/ctr".into(),
            directory: "/usr/lib/cni".into(),
        }
    }

    /// The one whose programs are all in `directory`.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self {
            containerd: directory.join("containerd"),
            ctr: directory.join("ctr"),
            directory: directory.to_owned(),
        }
    }
}
