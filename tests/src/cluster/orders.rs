//! What happens to a cluster's node besides pods: its parts are started again, or its power fails.
//!
//! A story asks for it by a file among the cluster's, which is gone when it is done. The node looks for those that it can do itself, and
//! whoever has started the node for the rest.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Files;

/// How often is looked whether there is an order, or whether it is done.
const LOOK: Duration = Duration::from_millis(200);
/// How long one may take, on a busy machine that emulates the node.
const LIMIT: Duration = Duration::from_secs(900);

/// Something to be done to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The kubelet ends and starts again.
    RestartKubelet,
    /// containerd ends and starts again.
    RestartContainerd,
    /// The node stops from one instant to the next, and starts again with what is on its disk.
    Reboot,
}

impl Order {
    /// Those that the node does itself.
    pub(super) const OF_NODE: [Order; 2] = [Order::RestartKubelet, Order::RestartContainerd];

    fn name(self) -> &'static str {
        match self {
            Order::RestartKubelet => "restart-kubelet",
            Order::RestartContainerd => "restart-containerd",
            Order::Reboot => "reboot",
        }
    }

    fn file(self, files: &Files) -> PathBuf {
        files.root().join(self.name())
    }

    /// Has it done, and waits until it is.
    ///
    /// # Errors
    /// When it is not done in a quarter of an hour.
    pub fn give(self, files: &Files) -> Result<()> {
        let file = self.file(files);
        fs::write(&file, "")?;
        let end = Instant::now() + LIMIT;
        while file.exists() {
            if Instant::now() > end {
                bail!("nobody has done {}", self.name());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether somebody wants it done.
    pub(super) fn is_given(self, files: &Files) -> bool {
        self.file(files).exists()
    }

    /// Says that it is done.
    pub(super) fn is_done(self, files: &Files) -> Result<()> {
        Ok(fs::remove_file(self.file(files))?)
    }
}
