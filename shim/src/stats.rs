//! A container's resource use, in the form that containerd and its CRI plugin read: cgroup v2 metrics.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message, MessageField};
use orlop_proto::agent::v1::{HugetlbStat, IoStat, StatsResponse};

/// The type by which containerd knows the metrics.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// More block devices, or sizes of huge pages, than a guest says to have are passed over. Those that there are, are fewer.
const MAX_DEVICES: usize = 64;
const MAX_SIZES: usize = 8;

/// What the guest's cgroup files say, as containerd wants it. The numbers are the guest's word.
///
/// # Errors
/// Not expected: the message can always be written.
pub fn metrics(stats: &StatsResponse) -> protobuf::Result<Any> {
    let metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: stats.pids_current,
            limit: stats.pids_max,
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(&stats.cpu_stat)),
        memory: MessageField::some(memory(stats)),
        memory_events: MessageField::some(events(&stats.memory_events)),
        io: MessageField::some(IOStat {
            usage: stats.io.iter().take(MAX_DEVICES).map(io).collect(),
            ..IOStat::default()
        }),
        hugetlb: stats.hugetlb.iter().take(MAX_SIZES).map(huge).collect(),
        ..Metrics::default()
    };
    any(&metrics)
}

/// The metrics of a task that uses nothing: the sandbox's own.
///
/// # Errors
/// Not expected: the message can always be written.
pub fn nothing() -> protobuf::Result<Any> {
    metrics(&StatsResponse::default())
}

fn any(metrics: &Metrics) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: TYPE.to_owned(),
        value: metrics.write_to_bytes()?,
        ..Any::default()
    })
}

fn cpu(stat: &HashMap<String, u64>) -> CPUStat {
    let get = |key: &str| stat.get(key).copied().unwrap_or_default();
    CPUStat {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        ..CPUStat::default()
    }
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let get = |key: &str| stats.memory_stat.get(key).copied().unwrap_or_default();
    MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        // Since Linux 5.9 they are counted by kind.
        workingset_refault: get("workingset_refault_anon")
            .saturating_add(get("workingset_refault_file")),
        workingset_activate: get("workingset_activate_anon")
            .saturating_add(get("workingset_activate_file")),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: stats.memory_current,
        usage_limit: stats.memory_max,
        max_usage: stats.memory_peak,
        swap_usage: stats.memory_swap_current,
        swap_limit: stats.memory_swap_max,
        swap_max_usage: stats.memory_swap_peak,
        ..MemoryStat::default()
    }
}

fn events(events: &HashMap<String, u64>) -> MemoryEvents {
    let get = |key: &str| events.get(key).copied().unwrap_or_default();
    MemoryEvents {
        low: get("low"),
        high: get("high"),
        max: get("max"),
        oom: get("oom"),
        oom_kill: get("oom_kill"),
        oom_group_kill: get("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

fn io(stat: &IoStat) -> IOEntry {
    IOEntry {
        major: stat.major.into(),
        minor: stat.minor.into(),
        rbytes: stat.rbytes,
        wbytes: stat.wbytes,
        rios: stat.rios,
        wios: stat.wios,
        ..IOEntry::default()
    }
}

/// The size is one of the kernel's words, which are short.
fn huge(stat: &HugetlbStat) -> HugeTlbStat {
    HugeTlbStat {
        current: stat.current,
        max: stat.max,
        failcnt: stat.failures,
        pagesize: stat.page_size.chars().take(16).collect(),
        ..HugeTlbStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroups_files_become_fields() {
        let stats = StatsResponse {
            memory_current: 4096,
            memory_stat: [("inactive_file".to_owned(), 1024)].into(),
            cpu_stat: [("usage_usec".to_owned(), 77)].into(),
            memory_events: [("oom_kill".to_owned(), 1)].into(),
            pids_current: 3,
            memory_peak: 8192,
            io: vec![
                IoStat {
                    major: 254,
                    wbytes: 5,
                    ..IoStat::default()
                };
                1000
            ],
            hugetlb: vec![HugetlbStat {
                page_size: "2MB".repeat(100),
                current: 6,
                ..HugetlbStat::default()
            }],
            ..StatsResponse::default()
        };
        let any = metrics(&stats).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.memory.usage, 4096);
        assert_eq!(metrics.memory.inactive_file, 1024);
        assert_eq!(metrics.cpu.usage_usec, 77);
        assert_eq!(metrics.memory_events.oom_kill, 1);
        assert_eq!(metrics.pids.current, 3);
        assert_eq!(metrics.memory.max_usage, 8192);
        // A guest may say what it likes.
        assert_eq!(metrics.io.usage.len(), MAX_DEVICES);
        let io = &metrics.io.usage[0];
        assert_eq!((io.major, io.wbytes), (254, 5));
        let huge = &metrics.hugetlb[0];
        assert_eq!((huge.current, huge.pagesize.len()), (6, 16));
        assert!(!nothing().unwrap().value.is_empty());
    }
}
