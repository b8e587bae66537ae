//! The hierarchies of cgroups that this machine has: one in version 2, one for each controller or a few in version 1.

use std::path::{Path, PathBuf};

/// The controllers of version 1 by which a pod's use is counted and limited.
const CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "blkio"];

/// Where one is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The place.
    pub root: PathBuf,
    /// Its controllers in version 1, none in version 2.
    pub controllers: Vec<String>,
}

/// Those that a pod's processes are to be in, by `/proc/self/mountinfo`. Where version 1 has the controllers, version 2 has none.
pub fn all(mountinfo: &str) -> Vec<Hierarchy> {
    let mut first = Vec::new();
    let mut second = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else {
            continue;
        };
        let Some(place) = mount.split(' ').nth(4) else {
            continue;
        };
        let mut kind = kind.split(' ');
        let (name, options) = (kind.next(), kind.nth(1).unwrap_or_default());
        let options = options.split(',');
        let known = options.filter(|option| CONTROLLERS.contains(option));
        let hierarchy = Hierarchy {
            root: PathBuf::from(place),
            controllers: known.map(str::to_owned).collect(),
        };
        match name {
            Some("cgroup") if !hierarchy.controllers.is_empty() => {
                // One may be mounted twice.
                let same = |other: &Hierarchy| other.controllers == hierarchy.controllers;
                if !first.iter().any(same) {
                    first.push(hierarchy);
                }
            }
            Some("cgroup2") => second.push(hierarchy),
            _ => {}
        }
    }
    if first.is_empty() {
        second.truncate(1);
        return second;
    }
    first
}

impl Hierarchy {
    /// Which cgroup of it a process is in, by its `/proc/<pid>/cgroup`.
    pub fn cgroup_of(&self, text: &str) -> Option<PathBuf> {
        let inside = text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let mut controllers = controllers.split(',');
            let here = match self.controllers.first() {
                Some(one) => controllers.any(|name| name == one),
                None => controllers.all(str::is_empty),
            };
            here.then_some(path)
        })?;
        let inside = inside.trim_start_matches('/');
        let leads_out = Path::new(inside)
            .components()
            .any(|part| part.as_os_str() == "..");
        (!leads_out).then(|| self.root.join(inside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: &str = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
        25 1 0:5 / /dev rw - devtmpfs udev rw\n";
    const FIRST: &str = "30 1 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        33 30 0:29 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
        34 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 30 0:30 / /again rw - cgroup cgroup rw,cpu,cpuacct\n\
        36 30 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";

    #[test]
    fn both_versions_are_found() {
        let roots = |text| -> Vec<_> {
            let all = all(text).into_iter();
            all.map(|one| (one.root.display().to_string(), one.controllers.join(",")))
                .collect()
        };
        let own = |root: &str, controllers: &str| (root.to_owned(), controllers.to_owned());
        assert_eq!(roots(SECOND), [own("/sys/fs/cgroup", "")]);
        assert_eq!(
            roots(FIRST),
            [
                own("/sys/fs/cgroup/memory", "memory"),
                own("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            ]
        );
        assert_eq!(roots("odd\n"), []);
    }

    #[test]
    fn a_process_is_found_in_each() {
        let text = "4:memory:/system.slice/x\n3:cpu,cpuacct:/\n1:name=systemd:/init\n0::/two\n";
        let found: Vec<_> = all(FIRST).iter().map(|one| one.cgroup_of(text)).collect();
        assert_eq!(
            found,
            [
                Some(PathBuf::from("/sys/fs/cgroup/memory/system.slice/x")),
                Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/")),
            ]
        );
        let second = &all(SECOND)[0];
        assert_eq!(second.cgroup_of(text), Some("/sys/fs/cgroup/two".into()));
        assert_eq!(second.cgroup_of("0::/../other\n"), None);
        assert_eq!(second.cgroup_of("4:memory:/x\n"), None);
    }
}
