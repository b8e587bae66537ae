//! What a control group counts.

use std::fs;

use orlop_proto::agent::v1::{HugetlbStat, IoStat, StatsResponse};

use super::{Cgroup, parse_map};

impl Cgroup {
    /// What the group's files say.
    pub fn stats(&self) -> StatsResponse {
        StatsResponse {
            memory_current: self.number("memory.current"),
            memory_max: self.number("memory.max"),
            memory_peak: self.number("memory.peak"),
            memory_swap_current: self.number("memory.swap.current"),
            memory_swap_max: self.number("memory.swap.max"),
            memory_swap_peak: self.number("memory.swap.peak"),
            memory_stat: self.map("memory.stat"),
            memory_events: self.map("memory.events"),
            cpu_stat: self.map("cpu.stat"),
            pids_current: self.number("pids.current"),
            pids_max: self.number("pids.max"),
            io: parse_io(&self.text("io.stat")),
            hugetlb: self.hugetlb(),
        }
    }

    /// One for each size of pages that the kernel has.
    fn hugetlb(&self) -> Vec<HugetlbStat> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut sizes: Vec<_> = files
            .filter_map(|file| Some(page_size(file.file_name().to_str()?)?.to_owned()))
            .collect();
        sizes.sort();
        let of = |size: String| HugetlbStat {
            current: self.number(&format!("hugetlb.{size}.current")),
            max: self.number(&format!("hugetlb.{size}.max")),
            failures: parse_map(&self.text(&format!("hugetlb.{size}.events")))
                .get("max")
                .copied()
                .unwrap_or(0),
            page_size: size,
        };
        sizes.into_iter().map(of).collect()
    }

    fn number(&self, file: &str) -> u64 {
        parse_number(&self.text(file))
    }

    /// Nothing for a file that is not there.
    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }
}

/// `hugetlb.2MB.current` is about 2MB; there are `hugetlb.2MB.rsvd.current` and others.
fn page_size(file: &str) -> Option<&str> {
    let size = file.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
    (!size.contains('.')).then_some(size)
}

/// "max" is no limit, which is the largest number.
fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, and there may be no more than the device's number.
fn parse_io(text: &str) -> Vec<IoStat> {
    let device = |line: &str| {
        let (device, counts) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut stat = IoStat {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IoStat::default()
        };
        let counts = counts.split(' ').filter_map(|count| count.split_once('='));
        for (name, count) in counts {
            let place = match name {
                "rbytes" => &mut stat.rbytes,
                "wbytes" => &mut stat.wbytes,
                "rios" => &mut stat.rios,
                "wios" => &mut stat.wios,
                _ => continue,
            };
            *place = count.parse().unwrap_or(0);
        }
        Some(stat)
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_formats() {
        assert_eq!(parse_number("max\n"), u64::MAX);
        assert_eq!(parse_number("4096\n"), 4096);
        assert_eq!(parse_number("what"), 0);
        let io = parse_io(
            "254:0 rbytes=10 wbytes=20 rios=3 wios=4 dbytes=5 dios=6\n7:1 \nodd\n8:x rios=1\n",
        );
        assert_eq!(io.len(), 2);
        assert_eq!(
            (
                io[0].major,
                io[0].rbytes,
                io[0].wbytes,
                io[0].rios,
                io[0].wios
            ),
            (254, 10, 20, 3, 4)
        );
        assert_eq!((io[1].major, io[1].minor, io[1].rbytes), (7, 1, 0));
        assert_eq!(page_size("hugetlb.2MB.current"), Some("2MB"));
        assert_eq!(page_size("hugetlb.2MB.rsvd.current"), None);
        assert_eq!(page_size("memory.current"), None);
    }

    #[test]
    fn each_size_of_huge_pages_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("hugetlb.2MB.current", "4194304\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 7\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("hugetlb.1GB.current", "0\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let found = Cgroup(dir.path().to_owned()).stats().hugetlb;
        assert_eq!(found.len(), 2);
        let huge = &found[1];
        assert_eq!(
            (
                huge.page_size.as_str(),
                huge.current,
                huge.max,
                huge.failures
            ),
            ("2MB", 4 << 20, u64::MAX, 7)
        );
    }
}
