use super::*;
use serde_json::json;

const fn mib(mib: u64) -> MemorySize {
    MemorySize::of_mib(mib)
}

fn size(vcpus: u32, memory: u64) -> Size {
    Size {
        vcpus,
        memory: mib(memory),
    }
}

/// A machine of 16 processors and 64 GiB, half of which a pod may have.
fn bounds() -> Bounds {
    Bounds {
        default: size(1, 256),
        guest: mib(64),
        most: size(8, 32 << 10),
        host: size(16, 64 << 10),
        room: None,
    }
}

fn limits(cpu: Option<u64>, memory: Option<u64>) -> Limits {
    Limits {
        cpu,
        shares: 0,
        memory: memory.map(mib),
    }
}

fn requests(shares: u64) -> Limits {
    Limits {
        shares,
        ..Limits::default()
    }
}

#[test]
fn a_vm_is_as_large_as_what_runs_in_it_may_grow() {
    let none = limits(None, None);
    let pod = |cpu, memory| Asked {
        pod: limits(cpu, memory),
        ..Asked::default()
    };
    let annotated = |vcpus, memory: Option<u64>| Asked {
        vcpus,
        memory: memory.map(mib),
        pod: limits(Some(3000), Some(1024)),
    };
    let table: &[(&str, Asked, &[Limits], Size)] = &[
        ("nobody says anything", pod(None, None), &[], size(1, 256)),
        (
            "a container without limits",
            pod(None, None),
            &[none],
            size(1, 256),
        ),
        ("two of them", pod(None, None), &[none, none], size(1, 256)),
        (
            "the pod's sum, and the guest's part: 64 MiB and a 64th",
            pod(Some(1500), Some(1024)),
            &[],
            size(2, 1024 + 64 + 16),
        ),
        (
            "less than a CPU is one",
            pod(Some(10), Some(64)),
            &[],
            size(1, 64 + 64 + 1),
        ),
        ("CPU alone", pod(Some(4000), None), &[], size(4, 256)),
        (
            "memory alone",
            pod(None, Some(128)),
            &[],
            size(1, 128 + 64 + 2),
        ),
        (
            "the first container's limits where the pod has none",
            pod(None, None),
            &[limits(Some(2500), Some(512))],
            size(3, 512 + 64 + 8),
        ),
        (
            "halves make a whole",
            pod(None, None),
            &[limits(Some(500), Some(100)), limits(Some(500), Some(28))],
            size(1, 128 + 64 + 2),
        ),
        (
            "one without limits beside one with",
            pod(None, None),
            &[limits(Some(500), Some(128)), none],
            size(2, 128 + 256 + 2),
        ),
        (
            "the containers' sum is more than the pod's",
            pod(Some(1000), Some(128)),
            &[limits(Some(3000), Some(256))],
            size(3, 256 + 64 + 4),
        ),
        (
            "the pod's sum is more than that of the containers so far",
            pod(Some(3000), Some(256)),
            &[limits(Some(1000), Some(128))],
            size(3, 256 + 64 + 4),
        ),
        (
            "annotations rule",
            annotated(Some(2), Some(512)),
            &[limits(Some(5000), Some(4096))],
            size(2, 512),
        ),
        (
            "one of them",
            annotated(Some(5), None),
            &[],
            size(5, 1024 + 64 + 16),
        ),
        ("the other", annotated(None, Some(2048)), &[], size(3, 2048)),
        (
            "who asks for CPUs has them",
            Asked {
                pod: requests(4096),
                ..Asked::default()
            },
            &[],
            size(4, 256),
        ),
        (
            "a request of nothing",
            Asked {
                pod: requests(2),
                ..Asked::default()
            },
            &[],
            size(1, 256),
        ),
        (
            "containers' requests",
            pod(None, None),
            &[requests(2048), requests(2048)],
            size(4, 256),
        ),
    ];
    for (what, asked, containers, expected) in table {
        let got = bounds().size(asked, containers.iter().copied());
        assert_eq!(got.as_ref(), Ok(expected), "{what}");
    }
}

#[test]
fn a_limit_beyond_the_machine_means_all_of_it() {
    let roomy = Bounds {
        most: size(16, 64 << 10),
        ..bounds()
    };
    let asked = Asked {
        pod: limits(Some(64_000), Some(1 << 20)),
        ..Asked::default()
    };
    assert_eq!(roomy.size(&asked, []), Ok(size(16, 64 << 10)));
    let endless = Asked {
        pod: limits(Some(u64::MAX), Some(u64::MAX)),
        ..Asked::default()
    };
    assert_eq!(
        roomy.size(&endless, [endless.pod, endless.pod]),
        Ok(size(16, 64 << 10))
    );
}

#[test]
fn what_is_beyond_the_bounds_is_refused_in_one_line_that_says_what_is_allowed() {
    let asked = |vcpus, memory: Option<u64>| Asked {
        vcpus,
        memory: memory.map(mib),
        ..Asked::default()
    };
    let pod = |cpu, memory| Asked {
        pod: limits(cpu, memory),
        ..Asked::default()
    };
    for (asked, words) in [
        (
            asked(Some(9), None),
            [
                "annotation orlop.dev/vcpus is 9",
                "1 to 8 vCPUs",
                "max_vcpus",
            ],
        ),
        (
            asked(Some(0), None),
            [
                "annotation orlop.dev/vcpus is 0",
                "1 to 8 vCPUs",
                "max_vcpus",
            ],
        ),
        (
            asked(None, Some(40_000)),
            [
                "annotation orlop.dev/memory is 40000M",
                "48M to 32768M",
                "max_memory",
            ],
        ),
        (
            asked(None, Some(16)),
            [
                "annotation orlop.dev/memory is 16M",
                "48M to 32768M",
                "max_memory",
            ],
        ),
        (
            pod(Some(12_000), None),
            [
                "CPU limit of the pod's containers is 12",
                "1 to 8 vCPUs",
                "max_vcpus",
            ],
        ),
        (
            pod(None, Some(32_768)),
            [
                "memory limit of the pod's containers is 33344M",
                "to 32768M",
                "576M of it for the guest's kernel",
            ],
        ),
    ] {
        let error = bounds().size(&asked, []).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn limits_are_read_as_the_specification_means_them() {
    let of = |resources: serde_json::Value| {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        Limits::of(Some(&resources))
    };
    let some = of(json!({
        "cpu": {"quota": 150_000, "period": 100_000, "shares": 512},
        "memory": {"limit": 1_048_577},
    }));
    assert_eq!(
        some,
        Limits {
            cpu: Some(1500),
            shares: 512,
            memory: Some(mib(2))
        }
    );
    // The kernel's own period where there is none; -1 and 0 are no limit.
    assert_eq!(of(json!({"cpu": {"quota": 50_000}})).cpu, Some(500));
    for none in [-1, 0] {
        let limits = of(json!({"cpu": {"quota": none, "period": 0}, "memory": {"limit": none}}));
        assert_eq!(limits, Limits::default());
    }
    assert_eq!(Limits::of(None), Limits::default());
    let changed = |resources: serde_json::Value| {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        some.changed(&resources)
    };
    assert_eq!(changed(json!({})), some);
    assert_eq!(
        changed(json!({"cpu": {"shares": 2}})),
        Limits { shares: 2, ..some }
    );
    let free = changed(json!({"cpu": {"quota": -1}, "memory": {"limit": -1}}));
    assert_eq!(
        free,
        Limits {
            cpu: None,
            memory: None,
            ..some
        }
    );
    let more = changed(json!({"memory": {"limit": 5 << 20}}));
    assert_eq!(
        more,
        Limits {
            memory: Some(mib(5)),
            ..some
        }
    );
    assert_eq!(Limits::cpu_of(i64::MAX, 0), Some(u64::MAX));
    assert_eq!(Limits::memory_of(i64::MIN), None);
}

#[test]
fn a_vm_fits_into_its_pods_control_group() {
    let within = |limit: u64, containers: &[Limits]| {
        let bounds = Bounds {
            room: Some(room_within(limit << 20)),
            ..bounds()
        };
        let size = bounds.size(&Asked::default(), containers.iter().copied());
        size.unwrap().memory.mib()
    };
    let container = |memory| [limits(None, Some(memory))];
    // 128 + 64 + 2 would be wanted.
    assert_eq!(within(1024, &container(128)), 194);
    assert_eq!(within(128 + 64, &container(128)), 176);
    // Of 16 GiB, 256 MiB are the guest's account of them, and 32 the host's.
    assert_eq!(within((16 << 10) + 64, &container(16 << 10)), 16_400);
    assert_eq!(within(1, &container(128)), LEAST_MEMORY.mib());
    // By an annotation, it is whoever sets it that takes care.
    let bounds = Bounds {
        room: Some(mib(100)),
        ..bounds()
    };
    let asked = Asked {
        memory: Some(mib(512)),
        ..Asked::default()
    };
    assert_eq!(bounds.size(&asked, []).unwrap().memory, mib(512));
}
