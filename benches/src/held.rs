//! What a VMM's process holds: memory beyond its guest's RAM, threads, files, page tables.

use std::fs;

use anyhow::{Context, Result};

use crate::group::Charged;

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Private memory without the guest's RAM, in bytes.
    pub beyond_ram: u64,
    /// What its control group is charged with that no other VM shares, in bytes: anonymous memory without the guest's RAM, and the kernel's own.
    /// `None` where the host's kernel does not say.
    pub unshared: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// Open files.
    pub files: u64,
    /// Its own page tables, in bytes; those of its guest are the host kernel's.
    pub page_tables: u64,
}

impl Held {
    /// What process `id` holds now, whose control group is charged with so much, if that is known. Its guest's RAM is what is mapped in one stretch that is at least `ram` bytes long.
    ///
    /// # Errors
    /// When the process has gone, or its files in `/proc` read otherwise than proc(5) says.
    pub fn by(id: u32, charged: Option<Charged>, ram: u64) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{id}/{name}");
            let text = fs::read_to_string(&path);
            text.with_context(|| format!("cannot read {path}"))
        };
        let own = stretches(&read("smaps")?).context("its smaps are not understood")?;
        let in_all: u64 = own.iter().map(|stretch| stretch.anonymous).sum();
        let own_anonymous: u64 = beyond(&own, ram).map(|stretch| stretch.anonymous).sum();
        let ram_anonymous = in_all - own_anonymous;
        let status = read("status")?;
        let field = |name: &str| field(&status, name).with_context(|| format!("no {name}"));
        Ok(Self {
            beyond_ram: beyond(&own, ram).map(|stretch| stretch.private).sum(),
            unshared: charged.map(|it| it.anonymous.saturating_sub(ram_anonymous) + it.kernel),
            threads: field("Threads:")?,
            files: fs::read_dir(format!("/proc/{id}/fd"))?.count() as u64,
            page_tables: field("VmPTE:")? << 10,
        })
    }
}

/// The memory of process `id` in bytes, of what is shared its part of it (PSS).
///
/// # Errors
/// When the process has gone, or its `smaps_rollup` reads otherwise than proc(5) says.
pub fn share_of_memory(id: u32) -> Result<u64> {
    let path = format!("/proc/{id}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(field(&text, "Pss:").with_context(|| format!("no Pss in {path}"))? << 10)
}

/// The same without the guest's RAM: without what is mapped in one stretch that is at least `ram` bytes long.
///
/// # Errors
/// When the process has gone, or its `smaps` reads otherwise than proc(5) says.
pub fn share_beyond_ram(id: u32, ram: u64) -> Result<u64> {
    let path = format!("/proc/{id}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let own = stretches(&text).with_context(|| format!("{path} is not understood"))?;
    Ok(beyond(&own, ram).map(|stretch| stretch.share).sum())
}

/// The number behind `name` in a process's `status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// What a process maps, what lies side by side and is of one kind as one: the guest's RAM is one stretch even where parts of it are in pages of another size, and not
/// where the program lies behind it.
fn stretches(smaps: &str) -> Option<Vec<Mapping>> {
    let mut stretches: Vec<Mapping> = Vec::new();
    for mapping in mappings(smaps)? {
        match stretches.last_mut() {
            Some(last) if last.end == mapping.start && last.is_like(&mapping) => {
                last.end = mapping.end;
                last.private += mapping.private;
                last.share += mapping.share;
                last.anonymous += mapping.anonymous;
            }
            _ => stretches.push(mapping),
        }
    }
    Some(stretches)
}

/// Those of the stretches that are no guest's RAM.
fn beyond(stretches: &[Mapping], ram: u64) -> impl Iterator<Item = &Mapping> {
    stretches
        .iter()
        .filter(move |stretch| stretch.end - stretch.start < ram)
}

/// A mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    /// The bytes in it that are private.
    private: u64,
    /// The bytes in it that are of no file.
    anonymous: u64,
    /// Its part of what is in it, where others share it (PSS), in bytes.
    share: u64,
    /// What may be done with it, as `rw-p`.
    permissions: String,
    /// The file that it is of; 0 for none.
    inode: u64,
    /// Whether core dumps have it. A VMM may leave its guest's RAM out of them.
    dumped: bool,
}

impl Mapping {
    fn is_like(&self, other: &Self) -> bool {
        self.permissions == other.permissions
            && self.inode == other.inode
            && self.dumped == other.dumped
    }
}

fn mappings(smaps: &str) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let (field, value) = line.split_once(char::is_whitespace)?;
        // A mapping begins with its range of addresses, its permissions, and the offset, the device and the inode of its file.
        if !field.ends_with(':') {
            let (start, end) = field.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).ok();
            let mut words = value.split_whitespace();
            mappings.push(Mapping {
                permissions: words.next()?.to_owned(),
                inode: words.nth(2)?.parse().ok()?,
                start: address(start)?,
                end: address(end)?,
                private: 0,
                anonymous: 0,
                share: 0,
                dumped: true,
            });
            continue;
        }
        let mapping = mappings.last_mut()?;
        let bytes = || Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10);
        match field {
            "Private_Clean:" | "Private_Dirty:" => mapping.private += bytes()?,
            "Anonymous:" => mapping.anonymous = bytes()?,
            "Pss:" => mapping.share = bytes()?,
            "VmFlags:" => mapping.dumped = !value.split_whitespace().any(|flag| flag == "dd"),
            _ => {}
        }
    }
    mappings
        .iter()
        .all(|mapping| mapping.start < mapping.end)
        .then_some(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_what_its_status_says() {
        let status = "Name:\torlop\nVmPTE:\t      84 kB\nThreads:\t4\n";
        assert_eq!(field(status, "VmPTE:"), Some(84));
        assert_eq!(field(status, "Threads:"), Some(4));
        assert_eq!(field(status, "Other:"), None);
        let (anonymous, kernel) = (1 << 40, 5);
        let charged = Some(Charged { anonymous, kernel });
        let own = Held::by(std::process::id(), charged, u64::MAX).unwrap();
        assert_eq!(own.unshared, Some((1 << 40) + 5));
        let all_is_ram = Held::by(std::process::id(), charged, 0).unwrap();
        assert!(all_is_ram.unshared < own.unshared && all_is_ram.beyond_ram == 0);
        assert!(share_of_memory(std::process::id()).unwrap() > 0);
        assert!(own.beyond_ram > 0 && own.threads > 0 && own.files > 0 && own.page_tables > 0);
    }

    #[test]
    fn the_guests_ram_is_left_out() {
        let smaps = "00400000-00500000 r-xp 00000000 08:01 1 /usr/bin/vmm\n\
                     Pss:                  14 kB\n\
                     Private_Clean:        12 kB\n\
                     Private_Dirty:         4 kB\n\
                     7f0000000000-7f0004000000 rw-p 00000000 00:00 0 \n\
                     Private_Clean:         0 kB\n\
                     Private_Dirty:     32768 kB\n\
                     VmFlags: rd wr dd hg\n\
                     7f0004000000-7f0008000000 rw-p 00000000 00:00 0 \n\
                     Private_Dirty:     32768 kB\n\
                     VmFlags: rd wr dd\n\
                     7f0008000000-7f0008001000 rw-p 00000000 00:00 0 \n\
                     Private_Dirty:         4 kB\n\
                     VmFlags: rd wr\n\
                     7f0010000000-7f0018000000 rw-p 00000000 00:00 0 \n\
                     Private_Dirty:         4 kB\n\
                     VmFlags: rd wr\n\
                     7f0018000000-7f0018100000 r-xp 00000000 08:01 1 /usr/bin/vmm\n\
                     Private_Clean:         8 kB\n\
                     VmFlags: rd ex\n";
        let stretches = stretches(smaps).unwrap();
        let private = |ram| beyond(&stretches, ram).map(|it| it.private).sum::<u64>();
        assert_eq!(
            private(128 << 20),
            28 << 10,
            "the program is none of the RAM before it"
        );
        assert_eq!(private(256 << 20), (32 << 10) + (64 << 20));
        let share = |ram| beyond(&stretches, ram).map(|it| it.share).sum::<u64>();
        assert_eq!(share(128 << 20), 14 << 10);
        assert!(super::stretches("nonsense").is_none());
    }
}
