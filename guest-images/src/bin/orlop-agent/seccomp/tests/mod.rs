//! Profiles as people write them, tried on the kernel itself: a filter holds for the thread that loads it.

mod machine;
mod random;

use serde_json::{Value, json};

use super::*;
use machine::{Call, run};
use profile::Verdict;

const EPERM: i32 = libc::EPERM;

fn filter(profile: Value) -> Result<Filter, SeccompError> {
    Filter::of(&serde_json::from_value(profile).unwrap())
}

/// The default of a profile as containerd's: nothing but what is named.
fn strict(syscalls: Value) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    })
}

fn native(number: i64, arguments: [u64; 6]) -> Call {
    Call {
        number: number as u32,
        architecture: 0xc000_003e,
        arguments,
    }
}

fn errno(number: i32) -> u32 {
    Verdict(libc::SECCOMP_RET_ERRNO | number as u32).0
}

/// Runs `what` in a thread behind the filter.
fn behind<T: Send + 'static>(filter: Filter, what: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        // SAFETY: this prctl takes no pointers.
        let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(set, 0);
        filter.load().unwrap();
        what()
    });
    thread.join().unwrap()
}

fn personality(persona: u64) -> Result<i64, i32> {
    // SAFETY: it sets how this thread alone is treated.
    match unsafe { libc::syscall(libc::SYS_personality, persona) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap()),
        was => Ok(was),
    }
}

fn fchmodat2() -> i32 {
    // SAFETY: the kernel gets no pointer but null.
    let result = unsafe { libc::syscall(libc::SYS_fchmodat2, -1, 0, 0, 0) };
    assert_eq!(result, -1);
    io::Error::last_os_error().raw_os_error().unwrap()
}

#[test]
fn the_kernel_does_as_the_profile_says() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
                "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 0x1234}]},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0xf000, "valueTwo": 0x2000}]},
            {"names": ["no_such_call_yet", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
        ],
    });
    let filter = filter(profile).unwrap();
    let seen = behind(filter, || {
        let mkdir = std::fs::create_dir("/nowhere/at/all").unwrap_err();
        [
            personality(0x1234),
            personality(0x2fff),
            Err(mkdir.raw_os_error().unwrap()),
            personality(0xffff_ffff).map(|_| 0),
        ]
    });
    assert_eq!(seen, [Err(77), Err(EPERM), Err(libc::EIO), Ok(0)]);
}

#[test]
fn a_call_newer_than_the_profile_is_said_not_to_be_there() {
    // Whatever a thread needs to end, and the newest of 6.5.
    let known: Vec<_> = syscalls_of_a_thread().collect();
    let with = |more: &[&str]| {
        let names: Vec<_> = known.iter().chain(more).collect();
        filter(strict(
            json!([{"names": names, "action": "SCMP_ACT_ALLOW"}]),
        ))
        .unwrap()
    };
    assert_eq!(behind(with(&[]), fchmodat2), libc::ENOSYS);
    // One that names newer ones has left it out on purpose.
    assert_eq!(behind(with(&["mseal"]), fchmodat2), EPERM);
}

fn syscalls_of_a_thread() -> impl Iterator<Item = &'static str> {
    [
        "madvise",
        "exit",
        "munmap",
        "mmap",
        "mprotect",
        "futex",
        "rt_sigprocmask",
        "sigaltstack",
        "set_robust_list",
        "rseq",
        "write",
        "close",
        "brk",
        "openat",
        "read",
        "gettid",
        "getpid",
        "prctl",
        "sched_getaffinity",
        "mremap",
    ]
    .into_iter()
}

#[test]
fn what_containerds_profile_has_is_understood() {
    const CLONE: u64 = 0x7e02_0000;
    let profile = strict(json!([
        {"names": ["read", "write", "clone3_of_tomorrow"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": CLONE, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
    ]));
    let filter = filter(profile).unwrap();
    let allow = libc::SECCOMP_RET_ALLOW;
    let forked = 0x0120_0011;
    for (call, verdict) in [
        (native(libc::SYS_read, [0; 6]), allow),
        (native(libc::SYS_mount, [0; 6]), errno(EPERM)),
        (native(libc::SYS_clone, [forked, 0, 0, 0, 0, 0]), allow),
        (
            native(libc::SYS_clone, [forked | 0x1000_0000, 0, 0, 0, 0, 0]),
            errno(EPERM),
        ),
        (native(libc::SYS_clone3, [0; 6]), errno(libc::ENOSYS)),
        (native(libc::SYS_socket, [1, 0, 0, 0, 0, 0]), allow),
        (native(libc::SYS_socket, [40, 0, 0, 0, 0, 0]), errno(EPERM)),
        (native(libc::SYS_personality, [8, 0, 0, 0, 0, 0]), allow),
        (
            native(libc::SYS_personality, [8 | 1 << 32, 0, 0, 0, 0, 0]),
            errno(EPERM),
        ),
        (native(libc::SYS_fchmodat2, [0; 6]), errno(libc::ENOSYS)),
        (native(i64::from(0x4000_0000), [0; 6]), errno(libc::ENOSYS)),
    ] {
        assert_eq!(run(&filter.program, call), verdict, "{call:?}");
    }
    // In 32-bit programs read is 3, and 0 is restart_syscall.
    for (number, verdict) in [(3, allow), (0, errno(EPERM)), (359, errno(EPERM))] {
        let call = Call {
            number,
            architecture: 0x4000_0003,
            arguments: [40, 0, 0, 0, 0, 0],
        };
        assert_eq!(run(&filter.program, call), verdict, "{number}");
    }
}

#[test]
fn programs_of_another_abi_end_unless_the_profile_has_it() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL_THREAD"}],
    });
    let filter = filter(profile).unwrap();
    for (number, architecture, verdict) in [
        (3, 0x4000_0003, Verdict::KILL_PROCESS.0),
        (1, 0xc000_00b7, Verdict::KILL_PROCESS.0),
        (0x4000_0000, 0xc000_003e, Verdict::KILL_PROCESS.0),
        (0, 0xc000_003e, libc::SECCOMP_RET_KILL_THREAD),
        (500, 0xc000_003e, libc::SECCOMP_RET_ALLOW),
    ] {
        let call = Call {
            number,
            architecture,
            arguments: [0; 6],
        };
        assert_eq!(run(&filter.program, call), verdict, "{call:?}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason() {
    let entry = |more: Value| {
        let mut entry = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        strict(json!([entry]))
    };
    for (profile, why) in [
        (
            entry(json!({"action": "SCMP_ACT_NOTIFY"})),
            "SCMP_ACT_NOTIFY",
        ),
        (entry(json!({"action": "SCMP_ACT_TRACE"})), "SCMP_ACT_TRACE"),
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "outside of the guest",
        ),
        (entry(json!({"errnoRet": 1})), "returns no error"),
        (
            entry(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            "4096",
        ),
        (entry(json!({"names": []})), "names no"),
        (
            entry(json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "argument 6",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "NOTIFY",
        ),
    ] {
        let error = filter(profile).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    let many: Vec<_> = (0..2000)
        .map(|value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"}))
        .collect();
    let error = filter(entry(json!({ "args": many }))).err().unwrap();
    assert!(matches!(error, SeccompError::TooLong(_)), "{error}");
}
