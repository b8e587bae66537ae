//! What the guest tells of its memory (virtio 1.2, 5.5.6.3): tags with values, taken as they are and believed by nobody.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The size of struct virtio_balloon_stat: a tag of 16 bits and a value of 64, packed.
const ENTRY: usize = 10;
/// As many bytes as are looked at: several times as many as there are tags.
pub const STATISTICS_MAX: usize = 64 * ENTRY;

/// What there is to tell, in the order of the tags (5.5.6.4); from `oom_kills` on as Linux 6.12 goes on with it.
const NAMES: [&str; 16] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "cache_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "allocation_stalls",
    "async_scanned_pages",
    "direct_scanned_pages",
    "async_reclaimed_pages",
    "direct_reclaimed_pages",
];

/// The newest value of each tag that the guest has sent.
#[derive(Debug, Default)]
pub struct Statistics {
    /// A bit for each tag that has a value.
    known: AtomicU32,
    values: [AtomicU64; NAMES.len()],
}

impl Statistics {
    /// The guest has sent these. A tag that means nothing here is left out, and so is what is cut short at the end.
    pub fn take(&self, bytes: &[u8]) {
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for [t0, t1, value @ ..] in entries {
            let tag = u16::from_le_bytes([*t0, *t1]);
            if let Some(place) = self.values.get(usize::from(tag)) {
                place.store(u64::from_le_bytes(*value), Ordering::Relaxed);
                self.known.fetch_or(1 << tag, Ordering::Release);
            }
        }
    }

    /// It is another guest.
    pub fn forget(&self) {
        self.known.store(0, Ordering::Release);
    }

    /// What is known, by name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let known = self.known.load(Ordering::Acquire);
        NAMES
            .iter()
            .zip(&self.values)
            .enumerate()
            .filter(|(tag, _)| known & (1 << tag) != 0)
            .map(|(_, (name, value))| (*name, value.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a driver writes it.
    fn entry(tag: u16, value: u64) -> Vec<u8> {
        let mut entry = tag.to_le_bytes().to_vec();
        entry.extend(value.to_le_bytes());
        entry
    }

    #[test]
    fn the_newest_values_are_told_by_name() {
        let statistics = Statistics::default();
        assert_eq!(statistics.list(), []);
        statistics.take(&[entry(4, 1 << 40), entry(0, 7), entry(15, 9)].concat());
        let all = [
            ("swap_in_bytes", 7),
            ("free_bytes", 1 << 40),
            ("direct_reclaimed_pages", 9),
        ];
        assert_eq!(statistics.list(), all);
        statistics.take(&entry(0, u64::MAX));
        assert_eq!(statistics.list()[0], ("swap_in_bytes", u64::MAX));
        statistics.forget();
        assert_eq!(statistics.list(), []);
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        let statistics = Statistics::default();
        let mut bytes = [entry(16, 1), entry(31, 1), entry(32, 1), entry(0xffff, 1)].concat();
        bytes.extend(&entry(5, 3)[..9]);
        statistics.take(&bytes);
        assert_eq!(statistics.list(), []);
        statistics.take(&[]);
        assert_eq!(statistics.list(), []);
    }
}
