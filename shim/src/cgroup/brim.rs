//! The brim of a pod's memory: a little below the limit of its cgroup, where the kernel begins to look for what it can free and says so (`memory.high`,
//! Documentation/admin-guide/cgroup-v2.rst). At the limit itself it could only kill, or keep all of the pod's processes busy looking.
//!
//! Beyond the brim it also slows down whoever takes more, the more so the further it is. A pod may be full for good reasons, so the brim is so near
//! that nothing comes of that: with 5 MiB below 304, a container that used all of its limit stood nearly still.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::PathBuf;

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use super::Cgroup;

/// How far below the limit the brim is.
const GAP: u64 = 1 << 20;

/// A cgroup with a brim, and what is said of it.
#[derive(Debug)]
pub struct Brim {
    group: Cgroup,
    directory: PathBuf,
    events: AsyncFd<File>,
    /// How often the brim had been reached when it was last looked.
    seen: u64,
}

impl Brim {
    /// Sets it. None where there is no limit, or no such thing as a brim, which version 1 has not.
    ///
    /// # Errors
    /// What the system says.
    pub fn set(group: &Cgroup) -> io::Result<Option<Self>> {
        let has_brim = |path: &&PathBuf| path.join("memory.high").exists();
        let (Some(directory), Some(_)) = (
            group.directories.iter().find(has_brim),
            group.memory_limit(),
        ) else {
            return Ok(None);
        };
        let events = File::open(directory.join("memory.events"))?;
        // SAFETY: the descriptor is open, and `AsyncFd` owns it until it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) };
        let mut brim = Self {
            group: group.clone(),
            directory: directory.clone(),
            events: events.map_err(io::Error::from)?,
            seen: 0,
        };
        brim.adjust()?;
        brim.seen = brim.count()?;
        Ok(Some(brim))
    }

    /// Waits until it is reached once more.
    ///
    /// # Errors
    /// What the system says; the cgroup may have gone.
    pub async fn reached(&mut self) -> io::Result<()> {
        loop {
            let count = self.count()?;
            if count > self.seen {
                self.seen = count;
                // Whoever made the limit may have changed it.
                self.adjust()?;
                return Ok(());
            }
            let mut ready = self.events.ready(Interest::PRIORITY).await?;
            ready.clear_ready_matching(Ready::PRIORITY | Ready::ERROR);
        }
    }

    /// How many bytes the kernel has for what these processes have open, which it cannot free while they have.
    pub fn held_by_files(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join("memory.stat"));
        field(&text.unwrap_or_default(), "slab_unreclaimable").unwrap_or(0)
    }

    fn adjust(&self) -> io::Result<()> {
        let brim = self.group.memory_limit().map(below);
        let text = brim.map_or("max".to_owned(), |brim| brim.to_string());
        fs::write(self.directory.join("memory.high"), text)
    }

    /// Reading from the beginning is what has the next change told.
    fn count(&mut self) -> io::Result<u64> {
        let events = self.events.get_mut();
        events.rewind()?;
        let mut text = String::new();
        events.read_to_string(&mut text)?;
        Ok(field(&text, "high").unwrap_or(0))
    }
}

fn below(limit: u64) -> u64 {
    limit.saturating_sub(GAP)
}

/// The number behind a name in a file of lines of both.
fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    text.lines().find_map(of_line)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brim_is_a_little_below_the_limit() {
        assert_eq!(below(256 << 20), 255 << 20);
        assert_eq!(below(1 << 19), 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "low 1\nhigh_water 9\nhigh 7\nmax x\n";
        assert_eq!(field(text, "high"), Some(7));
        assert_eq!(field(text, "max"), None);
        assert_eq!(field(text, "oom"), None);
    }

    #[tokio::test]
    async fn a_cgroup_without_a_limit_or_a_brim_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let group = Cgroup {
            directories: vec![directory.path().to_owned()],
        };
        assert!(Brim::set(&group).unwrap().is_none());
        fs::write(directory.path().join("memory.high"), "max\n").unwrap();
        assert!(Brim::set(&group).unwrap().is_none());
    }
}
