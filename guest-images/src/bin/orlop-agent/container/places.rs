//! Where the agent keeps what belongs to containers.

use std::path::{Path, PathBuf};

use crate::ids::{Id, ProcessId};

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The share with the bundles' root file systems.
    pub share: PathBuf,
    /// libcontainer's notes on each container.
    pub state: PathBuf,
    /// The agent's files for each container.
    pub bundles: PathBuf,
    /// The volumes that are kept in the guest's memory (`orlop_proto::agent::VOLUMES`).
    pub volumes: PathBuf,
}

impl Places {
    /// Everything in one directory, but for the share.
    pub fn below(directory: &Path, share: PathBuf) -> Self {
        Self {
            share,
            state: directory.join("state"),
            bundles: directory.join("bundles"),
            volumes: directory.join("volumes"),
        }
    }

    pub(super) fn volumes(&self, container: &Id) -> PathBuf {
        self.volumes.join(container.as_str())
    }

    pub(super) fn bundle(&self, container: &Id) -> PathBuf {
        self.bundles.join(container.as_str())
    }

    pub(super) fn process_file(&self, id: &ProcessId, kind: &str) -> PathBuf {
        let exec = id.exec.as_ref().map_or("", |exec| exec.as_str());
        self.bundle(&id.container).join(format!("{kind}-{exec}"))
    }

    /// Where launch `number` takes its terminal. CRI's ids have 64 digits, and two of them are longer than a socket's path may be
    /// (108 bytes), so the name is short; no id begins with a dot.
    pub(super) fn console(&self, number: i32) -> PathBuf {
        self.bundles.join(format!(".console-{number}"))
    }
}
