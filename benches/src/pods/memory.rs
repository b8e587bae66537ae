//! What a pod holds on its node.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use orlop_testbed::containerd::cri::Pod;

use crate::held::{share_beyond_ram, share_of_memory};

/// The least that a mapping of a guest's RAM has, in bytes. Nothing else of a pod maps as much in one stretch and has anything in it.
const GUEST_RAM: u64 = 128 << 20;

/// What a pod holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The memory of all of its processes, its shim among them, of what is shared their part (PSS).
    pub share: u64,
    /// Of that what is no guest's RAM.
    pub beyond_ram: u64,
    /// What its control group is charged with, the kernel's own for it and pages of files included.
    pub charged: u64,
}

impl Memory {
    /// What `pod` holds now.
    ///
    /// # Errors
    /// When one of its processes ends meanwhile, or the host's control groups are not of version 2.
    pub fn of(pod: &Pod) -> Result<Self> {
        let charged = pod.cgroup().join("memory.current");
        let text = fs::read_to_string(&charged)
            .with_context(|| format!("cannot read {}", charged.display()))?;
        let mut memory = Self {
            charged: text.trim().parse().context("no number of bytes")?,
            ..Self::default()
        };
        let processes = processes(pod)?;
        if processes.is_empty() {
            bail!("the pod {} has no process", pod.id);
        }
        for id in processes {
            memory.share += share_of_memory(id)?;
            memory.beyond_ram += share_beyond_ram(id, GUEST_RAM)?;
        }
        Ok(memory)
    }

    /// What each of these pods holds: their mean.
    pub fn each(pods: &[Self]) -> Self {
        let mean =
            |of: fn(&Self) -> u64| pods.iter().map(of).sum::<u64>() / (pods.len() as u64).max(1);
        Self {
            share: mean(|it| it.share),
            beyond_ram: mean(|it| it.beyond_ram),
            charged: mean(|it| it.charged),
        }
    }
}

/// The pod's processes: those in its control group, and its shim, which runc's leaves in containerd's. Not the host kernel's own threads, which work for
/// a VM in its group and have no memory of theirs.
fn processes(pod: &Pod) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    members(&pod.cgroup(), &mut found)?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
            continue;
        };
        // Whoever ends meanwhile has no command line.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if words.any(|word| word == pod.id.as_bytes()) && !found.contains(&id) {
            found.push(id);
        }
    }
    found.retain(|id| fs::read_link(format!("/proc/{id}/exe")).is_ok());
    Ok(found)
}

/// The processes in a control group and in those below it.
fn members(group: &Path, found: &mut Vec<u32>) -> Result<()> {
    let text = fs::read_to_string(group.join("cgroup.procs"))
        .with_context(|| format!("{} is no control group", group.display()))?;
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            members(&entry.path(), found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holds_its_part() {
        let one = |bytes| Memory {
            share: bytes,
            beyond_ram: bytes / 2,
            charged: bytes * 2,
        };
        assert_eq!(Memory::each(&[one(10), one(30)]), one(20));
        assert_eq!(Memory::each(&[]), Memory::default());
    }
}
