//! The pod's cgroup on this machine: the shim, the VMM and virtiofsd are in a child of it, so that it counts and limits what the pod takes.
//!
//! The kubelet makes the pod's cgroup and sets its limits; containerd names a child of it in the sandbox's spec, in which another runtime
//! would have the sandbox's process. The shim makes that child and goes into it before it has anything of its own; what it starts is there
//! from the beginning. Directories on the way that were not there are made as well, and marked, so that whoever removes the last child knows
//! them for its own.

mod brim;
mod hierarchy;
mod path;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use brim::Brim;
use hierarchy::Hierarchy;

/// Marks a directory that a shim has made.
const MARK: &str = "trusted.orlop";
/// The controllers of version 2 that a child is to have.
const CONTROLLERS: [&str; 4] = ["+memory", "+cpu", "+pids", "+io"];
/// The interval between looks whether the last process has gone.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a cgroup is not entered or not removed.
#[derive(Debug, thiserror::Error)]
#[error("the cgroup {}: {source}", path.display())]
pub struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

/// The cgroup that a pod's processes are in: a directory in each hierarchy.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
}

/// Where a process was before it went into a cgroup.
#[derive(Debug, Default)]
pub struct Home(Vec<PathBuf>);

impl Cgroup {
    /// Makes the cgroup that an OCI spec names, and has this process go into it. None where the spec names none, or the machine has none.
    ///
    /// # Errors
    /// What the system says; then this process is where it was.
    pub fn enter(cgroups_path: &Path) -> Result<Option<(Self, Home)>, CgroupError> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let hierarchies = hierarchy::all(&text);
        let Some(inside) = path::location(cgroups_path) else {
            return Ok(None);
        };
        if hierarchies.is_empty() {
            return Ok(None);
        }
        let here = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let home = |one: &Hierarchy| one.cgroup_of(&here).unwrap_or_else(|| one.root.clone());
        let home = Home(hierarchies.iter().map(home).collect());
        let mut group = Self::default();
        for one in &hierarchies {
            let made = make(&one.root, &inside, one.controllers.is_empty());
            group.directories.push(one.root.join(&inside));
            let entered = made.and_then(|()| {
                let directory = one.root.join(&inside);
                join(&directory).map_err(at(&directory))
            });
            if let Err(error) = entered {
                home.enter();
                let _ = group.remove(Instant::now());
                return Err(error);
            }
        }
        Ok(Some((group, home)))
    }

    /// How many bytes of memory what is in it may have: by its own limit or those of the cgroups that it is in, whichever is least. None without one.
    pub fn memory_limit(&self) -> Option<u64> {
        let above = self.directories.iter().flat_map(|directory| {
            directory
                .ancestors()
                .take_while(|path| is_cgroup(path))
                .filter_map(memory_limit)
        });
        above.min()
    }

    /// Kills what is in it. Version 1 cannot do that at once, and needs not: the pod's processes are known.
    pub fn kill(&self) {
        for directory in &self.directories {
            let _ = fs::write(directory.join("cgroup.kill"), "1");
        }
    }

    /// Removes it, when the last process in it has ended, and what was made on the way to it unless somebody else is there. One that is not
    /// there is no error.
    ///
    /// # Errors
    /// When there still is a process at `deadline`.
    pub fn remove(&self, deadline: Instant) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for directory in &self.directories {
            if let Err(error) = remove(directory, deadline) {
                result = Err(at(directory)(error));
                continue;
            }
            let marked = |path: &&Path| matches!(xattr::get(path, MARK), Ok(Some(_)));
            for parent in directory.ancestors().skip(1).take_while(marked) {
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
        result
    }
}

impl Home {
    /// Has this process go back.
    pub fn enter(&self) {
        for directory in &self.0 {
            // In version 2 one whose children have controllers takes no process, and the root always does.
            let root = directory
                .ancestors()
                .take_while(|path| is_cgroup(path))
                .last();
            if join(directory).is_err()
                && let Some(Err(error)) = root.map(join)
            {
                log::warn!(
                    "cannot go back to the cgroup {}: {error}",
                    directory.display()
                );
            }
        }
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError {
        path: path.clone(),
        source,
    }
}

fn is_cgroup(path: &Path) -> bool {
    path.join("cgroup.procs").exists()
}

/// The limit of one cgroup, in either version's file. Version 2 says `max` for none; version 1 has a number that no machine has.
fn memory_limit(directory: &Path) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    let files = ["memory.max", "memory.limit_in_bytes"];
    let read = |name| fs::read_to_string(directory.join(name)).ok();
    let text = files.into_iter().find_map(read)?;
    text.trim().parse().ok().filter(|limit| *limit < NONE)
}

/// Has this process go there.
fn join(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.procs"), "0")
}

/// Makes `inside` below `root`, and has each on the way give its children the controllers that they need, which is version 2's way.
fn make(root: &Path, inside: &Path, hand_down: bool) -> Result<(), CgroupError> {
    let mut directory = root.to_owned();
    for name in inside {
        if hand_down {
            for controller in CONTROLLERS {
                // Where that is not possible the child has none, and counts what it can.
                let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
            }
        }
        directory.push(name);
        match fs::create_dir(&directory) {
            Ok(()) => {
                // Without a mark it stays in the end.
                let _ = xattr::set(&directory, MARK, b"1");
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&directory)(error)),
        }
    }
    Ok(())
}

fn remove(directory: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A process that has ended is there until it is reaped.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_and_only_the_last_is_there_to_be_removed() {
        let root = tempfile::tempdir().unwrap();
        let inside = Path::new("kubepods/pod1/abc");
        fs::create_dir_all(root.path().join("kubepods/pod1")).unwrap();
        make(root.path(), inside, false).unwrap();
        make(root.path(), inside, false).unwrap();
        let group = Cgroup {
            directories: vec![root.path().join(inside)],
        };
        group.remove(Instant::now()).unwrap();
        group.remove(Instant::now()).unwrap();
        assert!(root.path().join("kubepods/pod1").exists());
        assert!(!root.path().join(inside).exists());
    }

    #[test]
    fn what_was_made_on_the_way_goes_with_the_last_child() {
        let root = tempfile::tempdir().unwrap();
        if xattr::set(root.path(), MARK, b"0").is_err() {
            println!("skipped: not root, or a file system without attributes");
            return;
        }
        xattr::remove(root.path(), MARK).unwrap();
        let group = |name: &str| Cgroup {
            directories: vec![root.path().join("default").join(name)],
        };
        make(root.path(), Path::new("default/a"), false).unwrap();
        make(root.path(), Path::new("default/b"), false).unwrap();
        group("a").remove(Instant::now()).unwrap();
        assert!(root.path().join("default/b").exists());
        group("b").remove(Instant::now()).unwrap();
        assert!(!root.path().join("default").exists());
        assert!(root.path().exists());
    }

    #[test]
    fn the_least_limit_on_the_way_counts() {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join("kubepods/pod1/abc");
        fs::create_dir_all(&inside).unwrap();
        let group = Cgroup {
            directories: vec![inside.clone()],
        };
        for directory in inside.ancestors().take(4) {
            fs::write(directory.join("cgroup.procs"), "").unwrap();
        }
        assert_eq!(group.memory_limit(), None);
        let limit = |path: &str, name: &str, text: &str| {
            fs::write(root.path().join(path).join(name), text).unwrap();
        };
        limit("kubepods/pod1/abc", "memory.max", "max\n");
        limit("kubepods/pod1", "memory.max", "335544320\n");
        limit("kubepods", "memory.max", "1073741824\n");
        assert_eq!(group.memory_limit(), Some(335_544_320));
        fs::remove_file(root.path().join("kubepods/pod1/memory.max")).unwrap();
        limit(
            "kubepods/pod1",
            "memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(group.memory_limit(), Some(1 << 30));
    }

    #[test]
    fn a_spec_without_a_cgroup_leaves_everything_where_it_is() {
        assert!(Cgroup::enter(Path::new("")).unwrap().is_none());
    }

    /// Says to a process of this test's own that it is the one.
    const ALONE: &str = "ORLOP_TEST_CGROUP";

    /// In a process of its own, for no other test's may be in the cgroup.
    #[test]
    fn a_process_goes_in_with_its_children_and_comes_back() {
        if std::env::var_os(ALONE).is_none() {
            let name = "cgroup::tests::a_process_goes_in_with_its_children_and_comes_back";
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", name, "--nocapture"])
                .env(ALONE, "1");
            let done = command.output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout);
            assert!(done.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let inside = format!("/orlop-test-{}/child", std::process::id());
        let (group, home) = match Cgroup::enter(Path::new(&inside)) {
            Ok(Some(entered)) => entered,
            Ok(None) => return println!("skipped: no cgroups here"),
            Err(error) => return println!("skipped: {error}"),
        };
        let mut cat = std::process::Command::new("cat");
        let said = cat.arg("/proc/self/cgroup").output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        let there = said.lines().filter(|line| line.ends_with(&inside)).count();
        assert_eq!(there, group.directories.len(), "{said}");
        assert!(group.remove(Instant::now()).is_err(), "somebody is there");
        home.enter();
        group
            .remove(Instant::now() + Duration::from_secs(5))
            .unwrap();
        for directory in &group.directories {
            assert!(!directory.parent().unwrap().exists(), "{directory:?}");
        }
    }
}
