//! Processes that the kernel kills for want of memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::parse_map;

/// The file is far shorter.
const MAX_TEXT: usize = 4096;

/// A group's `memory.events`, which counts those of the groups below as well. The kernel reports a change to whoever polls the file
/// and has read it before.
pub struct MemoryWatch(AsyncFd<File>);

impl MemoryWatch {
    pub(super) fn open(file: &Path) -> io::Result<Self> {
        let file = File::open(file)?;
        // SAFETY: a File keeps its descriptor, open and the same, for as long as it lives.
        let polled = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?;
        Ok(Self(polled))
    }

    /// How many processes were killed so far.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn kills(&self) -> io::Result<u64> {
        let mut text = [0; MAX_TEXT];
        let length = self.0.get_ref().read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
        Ok(parse_map(&text).get("oom_kill").copied().unwrap_or(0))
    }

    /// Waits until more than `seen` were killed; answers how many.
    ///
    /// # Errors
    /// When the group is gone.
    pub async fn more_than(&self, seen: u64) -> io::Result<u64> {
        loop {
            let kills = self.kills()?;
            if kills > seen {
                return Ok(kills);
            }
            self.0.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}
