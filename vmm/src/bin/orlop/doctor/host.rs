//! The machine around the VMM: control groups, memory, and devices that make some things better.

use std::fs;
use std::path::Path;

use super::Finding;

/// A pod's default VM, and as much again for the host's side and the page cache.
const WANTED_MIB: u64 = 512;

/// Looks at the machine.
pub fn check() -> Vec<Finding> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    vec![
        memory(&meminfo),
        control_groups(),
        present(
            "vhost-net",
            Path::new("/dev/vhost-net"),
            "there; networks can be quick",
            "not there: networks will be slower (module vhost_net)",
        ),
        iommu(),
    ]
}

fn memory(meminfo: &str) -> Finding {
    let check = "memory";
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok());
    match available.map(|kib| kib / 1024) {
        None => Finding::note(check, "/proc/meminfo does not say how much is free"),
        Some(mib) if mib < WANTED_MIB => Finding::missing(
            check,
            format!("{mib} MiB available"),
            format!("a pod needs about {WANTED_MIB} MiB"),
        ),
        Some(mib) => Finding::ok(check, format!("{mib} MiB available")),
    }
}

fn control_groups() -> Finding {
    let check = "cgroups";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Finding::ok(check, "version 2")
    } else {
        Finding::note(
            check,
            "version 2 is not mounted at /sys/fs/cgroup: what a pod takes on the host is accounted by version 1, or not at all",
        )
    }
}

fn iommu() -> Finding {
    let check = "iommu";
    let groups = fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
    if groups > 0 {
        Finding::ok(check, format!("{groups} groups"))
    } else {
        Finding::note(
            check,
            "none: PCI devices cannot be handed to guests (intel_iommu=on, or the firmware's setting)",
        )
    }
}

fn present(check: &'static str, path: &Path, there: &str, absent: &str) -> Finding {
    if path.exists() {
        Finding::ok(check, there)
    } else {
        Finding::note(check, absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn memory_is_judged_by_what_is_available() {
        let of = |kib: u64| memory(&format!("MemTotal: 9 kB\nMemAvailable:  {kib} kB\n")).verdict;
        assert_eq!(of(100 << 10), Verdict::Missing);
        assert_eq!(of(2 << 20), Verdict::Ok);
        assert_eq!(memory("").verdict, Verdict::Note);
    }
}
