//! A container's control group (cgroup v2; Documentation/admin-guide/cgroup-v2.rst).
//!
//! libcontainer makes the group and sets its limits; this freezes it and takes it away, and [`limits`] sets others. [`stats`] reads what it counts, and [`memory`]
//! hears of processes that were killed for want of memory.

mod limits;
pub mod memory;
mod stats;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::memory::MemoryWatch;
use crate::ids::Id;

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The group of all containers, below [`ROOT`].
const PARENT: &str = "orlop";

/// Groups nested deeper than this by a container are not followed.
const MAX_DEPTH: usize = 32;

/// How long freezing may take, and how long a group's last processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The interval between looks.
const PAUSE: Duration = Duration::from_millis(5);

/// The control group of one container.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The group of a container, whether it exists or not.
    pub fn of(container: &Id) -> Self {
        Self(Path::new(ROOT).join(PARENT).join(container.as_str()))
    }

    /// The group of all containers.
    pub fn all() -> Self {
        Self(Path::new(ROOT).join(PARENT))
    }

    /// Its name as the OCI spec wants it, from the hierarchy's root.
    pub fn spec_path(&self) -> PathBuf {
        Path::new("/").join(self.0.strip_prefix(ROOT).unwrap_or(&self.0))
    }

    /// The process ids in it and in the groups below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for group in self.tree() {
            let Ok(text) = fs::read_to_string(group.join("cgroup.procs")) else {
                continue;
            };
            // 0 is a process that this process's namespace has no number for.
            found.extend(
                text.lines()
                    .filter_map(|pid| pid.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            );
        }
        found
    }

    /// Kills every process in it.
    ///
    /// # Errors
    /// When the kernel refuses. A group that does not exist holds no processes.
    pub fn kill(&self) -> io::Result<()> {
        match fs::write(self.0.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Freezes or thaws it, and returns when that has happened.
    ///
    /// # Errors
    /// When the kernel refuses, or a process cannot be frozen in time.
    pub async fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let reached = || self.events().get("frozen") == Some(&u64::from(frozen));
        if wait_until(reached).await {
            return Ok(());
        }
        if frozen {
            let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "its processes did not stop in time",
        ))
    }

    /// Whether it is frozen, or being frozen.
    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Kills what is in it and removes it.
    ///
    /// # Errors
    /// When processes stay in it.
    pub async fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        let gone = || {
            let _ = self.kill();
            // The deepest come last in the list, and a group can only go when none is below it.
            result = self
                .tree()
                .iter()
                .rev()
                .try_for_each(|group| match fs::remove_dir(group) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                });
            result.is_ok()
        };
        wait_until(gone).await;
        result
    }

    /// Begins to watch for processes that are killed for want of memory.
    ///
    /// # Errors
    /// When the group is gone, or its memory is not accounted for.
    pub fn watch_memory(&self) -> io::Result<MemoryWatch> {
        MemoryWatch::open(&self.0.join("memory.events"))
    }

    fn events(&self) -> HashMap<String, u64> {
        self.map("cgroup.events")
    }

    fn map(&self, file: &str) -> HashMap<String, u64> {
        fs::read_to_string(self.0.join(file)).map_or_else(|_| HashMap::new(), |s| parse_map(&s))
    }

    /// The group and all below it, parents first.
    fn tree(&self) -> Vec<PathBuf> {
        let mut found = vec![self.0.clone()];
        let mut level = vec![self.0.clone()];
        for _ in 0..MAX_DEPTH {
            level = level.iter().flat_map(|group| children(group)).collect();
            if level.is_empty() {
                break;
            }
            found.extend(level.iter().cloned());
        }
        found
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

async fn wait_until(mut reached: impl FnMut() -> bool) -> bool {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if reached() {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A file with a name and a number in each line.
fn parse_map(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_formats() {
        let map = parse_map("usage_usec 12\nnr_periods 0\nodd\nother x\n");
        assert_eq!(map.len(), 2);
        assert_eq!(map["usage_usec"], 12);
    }

    #[test]
    fn the_groups_name_in_the_spec_starts_at_the_hierarchys_root() {
        let group = Cgroup::of(&Id::parse("web").unwrap());
        assert_eq!(group.spec_path(), Path::new("/orlop/web"));
    }

    #[test]
    fn the_tree_lists_parents_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "3\n0\n5\n").unwrap();
        fs::write(dir.path().join("a/b/cgroup.procs"), "9\n").unwrap();
        let group = Cgroup(dir.path().to_owned());
        assert_eq!(group.processes(), [3, 5, 9]);
        let tree = group.tree();
        assert_eq!(tree.len(), 4);
        assert!(tree.is_sorted());
    }
}
