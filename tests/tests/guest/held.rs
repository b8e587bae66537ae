//! What a VMM's process holds of its host, to see that it does not grow.

use std::collections::BTreeMap;
use std::fs;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Memory of its own, but for the guest's RAM, in KiB.
    pub kib: u64,
    /// But for the kernel's own, which work for an io_uring and come and go.
    pub threads: usize,
    pub descriptors: usize,
}

impl Held {
    /// Of the VMM with this process id.
    pub fn by_vmm(id: u32) -> Self {
        let entries = |what| fs::read_dir(format!("/proc/{id}/{what}")).unwrap();
        let is_own = |name: &str| !name.starts_with("iou-");
        Held {
            kib: own_memory(&fs::read_to_string(format!("/proc/{id}/smaps")).unwrap()),
            threads: entries("task")
                .map(|task| task.unwrap().path().join("comm"))
                .filter(|name| fs::read_to_string(name).is_ok_and(|name| is_own(&name)))
                .count(),
            descriptors: entries("fd").count(),
        }
    }
}

/// Where the private memory of a process lies, in KiB by what is mapped, to see what has grown.
pub fn by_mapping(id: u32) -> BTreeMap<String, u64> {
    let smaps = fs::read_to_string(format!("/proc/{id}/smaps")).unwrap();
    let (mut all, mut name) = (BTreeMap::new(), String::new());
    for line in smaps.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [what, size, "kB"] if what.starts_with("Private_") => {
                *all.entry(name.clone()).or_default() += size.parse::<u64>().unwrap();
            }
            [range, _, _, _, _, ref path @ ..] if range.contains('-') => {
                name = path.last().unwrap_or(&"anonymous").to_string();
            }
            _ => {}
        }
    }
    all.retain(|_, size| *size > 0);
    all
}

/// The private memory of all mappings but the guest's RAM, which is told by its being left out of core dumps, in KiB. RAM counts for
/// nothing because how much of it is there is the guest's and the host's affair: a page is had when it is touched, or 512 at once.
fn own_memory(smaps: &str) -> u64 {
    let (mut own, mut of_mapping, mut seen_ram) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Private_Clean:" | "Private_Dirty:" | "Swap:") => {
                of_mapping += words.next().unwrap().parse::<u64>().unwrap();
            }
            // The last line of each mapping.
            Some("VmFlags:") => {
                let is_ram = words.any(|flag| flag == "dd");
                seen_ram |= is_ram;
                own += if is_ram { 0 } else { of_mapping };
                of_mapping = 0;
            }
            _ => {}
        }
    }
    assert!(
        seen_ram,
        "the guest's RAM is not among the mappings:\n{smaps}"
    );
    own
}
