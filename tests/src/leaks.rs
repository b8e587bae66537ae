//! What a machine holds at a moment: processes, mounts, sockets, directories, cgroups. Two looks, one before and one after, tell
//! what was left behind.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What may go on after the call that ends it has answered, such as a process that is being reaped.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// One look at a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    things: BTreeSet<Thing>,
}

/// Something that can be left behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// A process, with its id and its command line.
    Process(u32, String),
    /// A mount of this machine's namespace, as mountinfo names its place.
    Mount(String),
    /// A unix socket with a name.
    Socket(String),
    /// A file or a directory in one of the places looked at.
    File(PathBuf),
    /// A cgroup.
    Cgroup(PathBuf),
    /// A network namespace with a name.
    NetworkNamespace(PathBuf),
    /// A network interface.
    Interface(String),
}

impl fmt::Display for Thing {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(id, command) => write!(to, "process {id}: {command}"),
            Self::Mount(place) => write!(to, "mount {place}"),
            Self::Socket(name) => write!(to, "socket {name}"),
            Self::File(path) => write!(to, "file {}", path.display()),
            Self::Cgroup(path) => write!(to, "cgroup {}", path.display()),
            Self::NetworkNamespace(path) => write!(to, "network namespace {}", path.display()),
            Self::Interface(name) => write!(to, "interface {name}"),
        }
    }
}

impl Holdings {
    /// Looks at this machine, and at the files in `places`.
    #[must_use]
    pub fn now(places: &[PathBuf]) -> Self {
        let mut things = BTreeSet::new();
        things.extend(processes());
        things.extend(mounts());
        things.extend(sockets());
        things.extend(
            below(Path::new("/sys/fs/cgroup"), true)
                .into_iter()
                .map(Thing::Cgroup),
        );
        things.extend(children(Path::new("/run/netns")).map(Thing::NetworkNamespace));
        things.extend(
            children(Path::new("/sys/class/net"))
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .map(Thing::Interface),
        );
        for place in places {
            things.extend(below(place, false).into_iter().map(Thing::File));
        }
        Self { things }
    }

    /// What is here now and was not at `before`.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Vec<Thing> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// What is on this machine beyond `before` and what `may_stay`, after everything that is still ending had its time.
#[must_use]
pub fn left_since(
    before: &Holdings,
    places: &[PathBuf],
    may_stay: impl Fn(&Thing) -> bool,
) -> Vec<Thing> {
    let end = Instant::now() + SETTLE_LIMIT;
    loop {
        let mut left = Holdings::now(places).beyond(before);
        left.retain(|thing| !may_stay(thing));
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn processes() -> impl Iterator<Item = Thing> {
    children(Path::new("/proc")).filter_map(|path| {
        let id = path.file_name()?.to_str()?.parse().ok()?;
        let command = fs::read(path.join("cmdline")).ok()?;
        // Threads of the kernel come and go, and have no command line.
        if command.is_empty() && !is_zombie(&path) {
            return None;
        }
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Some(Thing::Process(id, command.trim().to_owned()))
    })
}

fn is_zombie(process: &Path) -> bool {
    fs::read_to_string(process.join("stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

fn mounts() -> Vec<Thing> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth field is the mount's place.
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|place| Thing::Mount(place.to_owned()))
        .collect()
}

fn sockets() -> Vec<Thing> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // The eighth field, where there is one, is the socket's name.
    text.lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .map(|name| Thing::Socket(name.to_owned()))
        .collect()
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// Everything below a directory, itself included; of cgroups only the directories count.
fn below(directory: &Path, only_directories: bool) -> Vec<PathBuf> {
    if !directory.exists() {
        return Vec::new();
    }
    let mut found = vec![directory.to_owned()];
    for path in children(directory) {
        if path.symlink_metadata().is_ok_and(|data| data.is_dir()) {
            found.extend(below(&path, only_directories));
        } else if !only_directories {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let places = [directory.path().to_owned()];
        let before = Holdings::now(&places);
        let file = directory.path().join("left");
        fs::write(&file, "").unwrap();
        let left = Holdings::now(&places).beyond(&before);
        assert!(left.contains(&Thing::File(file)));
    }
}
