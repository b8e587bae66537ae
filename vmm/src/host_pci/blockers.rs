//! What keeps a device with the host.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Device, System};

/// Something that keeps a device with the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// DMA of it could not be confined.
    NoIommu,
    /// Others are behind it.
    Bridge,
    /// The host boots on it.
    BootDisplay,
    /// One of its disks is in use: the disk, and by what.
    Disk(String, String),
    /// The host's default route is by it.
    DefaultRoute(String),
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::NoIommu => f.write_str(
                "it is behind no IOMMU: turn on VT-d or AMD-Vi in the firmware's set-up, and boot an Intel machine's kernel with intel_iommu=on",
            ),
            Blocker::Bridge => f.write_str("it is a bridge"),
            Blocker::BootDisplay => {
                f.write_str("it is the display that the host boots on; have the firmware use another")
            }
            Blocker::Disk(disk, user) => {
                write!(f, "its disk {disk} is {user}; end that first")
            }
            Blocker::DefaultRoute(card) => write!(
                f,
                "the host's default route is by its card {card}; give the host another first"
            ),
        }
    }
}

impl Blocker {
    /// The same in a word or two.
    pub fn short(&self) -> String {
        match self {
            Blocker::NoIommu => "no IOMMU".into(),
            Blocker::Bridge => "bridge".into(),
            Blocker::BootDisplay => "boot display".into(),
            Blocker::Disk(disk, user) => format!("{disk} {user}"),
            Blocker::DefaultRoute(card) => format!("default route ({card})"),
        }
    }
}

/// What keeps `device` with the host.
pub fn of(system: &System, device: &Device) -> Vec<Blocker> {
    let mut found = Vec::new();
    if device.is_bridge() {
        return vec![Blocker::Bridge];
    }
    if device.group().is_none() {
        found.push(Blocker::NoIommu);
    }
    if device.attribute("boot_vga").as_deref() == Some("1") {
        found.push(Blocker::BootDisplay);
    }
    found.extend(disks(system, device));
    found.extend(cards(system, device));
    found
}

/// Its disks that are in use: their own, their partitions', or of what is made of them.
fn disks(system: &System, device: &Device) -> Vec<Blocker> {
    let mounts = mounted(system);
    let swaps = text(&system.path("proc/swaps"));
    let used = |name: &str| {
        let number = text(&system.path(&format!("sys/class/block/{name}/dev")));
        if mounts.contains(number.trim()) {
            return Some("mounted");
        }
        let node = format!("/dev/{name}");
        let is_swap = swaps
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&node));
        is_swap.then_some("used for swapping")
    };
    let mut found = Vec::new();
    let mut looked_at = BTreeSet::new();
    let mut queue: Vec<(String, String)> = below(system, "block", device)
        .into_iter()
        .map(|name| (name.clone(), name))
        .collect();
    while let Some((disk, name)) = queue.pop() {
        if !looked_at.insert(name.clone()) {
            continue;
        }
        if let Some(how) = used(&name) {
            let how = if disk == name {
                how.to_owned()
            } else {
                format!("part of {name}, which is {how}")
            };
            found.push(Blocker::Disk(disk.clone(), how));
        }
        let holders = names(&system.path(&format!("sys/class/block/{name}/holders")));
        queue.extend(holders.into_iter().map(|holder| (disk.clone(), holder)));
    }
    found
}

/// The numbers of the block devices that are mounted, as `259:0`, in the namespace of the host's first process where it can be read.
fn mounted(system: &System) -> BTreeSet<String> {
    let files = ["proc/1/mountinfo", "proc/self/mountinfo"];
    let lists = files.map(|file| text(&system.path(file)));
    let lines = lists.iter().flat_map(|list| list.lines());
    lines
        .filter_map(|line| line.split_whitespace().nth(2))
        .map(str::to_owned)
        .collect()
}

/// Its cards that the host's default route is by, directly or as a part of something.
fn cards(system: &System, device: &Device) -> Vec<Blocker> {
    let routes = default_routes(system);
    let mut found = Vec::new();
    for card in below(system, "net", device) {
        let mut name = Some(card.clone());
        // A bridge or a bond over it may be part of another in turn.
        for _ in 0..8 {
            let Some(current) = name else { break };
            if routes.contains(&current) {
                found.push(Blocker::DefaultRoute(card.clone()));
                break;
            }
            let master = system.path(&format!("sys/class/net/{current}/master"));
            name = fs::read_link(master)
                .ok()
                .and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
        }
    }
    found
}

fn default_routes(system: &System) -> BTreeSet<String> {
    const NOWHERE: &str = "00000000";
    let mut found = BTreeSet::new();
    // Interface, destination, gateway, flags, …, mask.
    for line in text(&system.path("proc/net/route")).lines().skip(1) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [interface, NOWHERE, _, _, _, _, _, NOWHERE, ..] = words.as_slice() {
            found.insert((*interface).to_owned());
        }
    }
    // Destination, length of its prefix, …, interface.
    for line in text(&system.path("proc/net/ipv6_route")).lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ([destination, "00", ..], Some(interface)) = (words.as_slice(), words.last())
            && destination.bytes().all(|digit| digit == b'0')
            && *interface != "lo"
        {
            found.insert((*interface).to_owned());
        }
    }
    found
}

/// The names in a class of devices of the kernel's that are `device`'s own.
fn below(system: &System, class: &str, device: &Device) -> Vec<String> {
    let directory = system.path(&format!("sys/class/{class}"));
    let Ok(place) = device.path().canonicalize() else {
        return Vec::new();
    };
    let is_below = |name: &String| {
        let path: PathBuf = directory.join(name);
        path.canonicalize()
            .is_ok_and(|path| path.starts_with(&place))
    };
    names(&directory).into_iter().filter(is_below).collect()
}

/// What is in a directory, in order; nothing where there is none.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
