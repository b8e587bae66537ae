//! A container's resource use, in the form that containerd and its CRI plugin read: cgroup v2 metrics.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message, MessageField};
use orlop_proto::agent::v1::StatsResponse;

/// The type by which containerd knows the metrics.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

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
        usage: stats.memory_current,
        usage_limit: stats.memory_max,
        swap_usage: stats.memory_swap_current,
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
        ..MemoryEvents::default()
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
        assert!(!nothing().unwrap().value.is_empty());
    }
}
