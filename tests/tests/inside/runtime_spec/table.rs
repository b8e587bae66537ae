//! What a container sees of itself.

use serde_json::{Value, json};

use super::Findings;
use crate::agent::{AgentVm, spec};

/// Containers of one spec, and what must be seen in one.
pub struct Setting {
    pub name: &'static str,
    pub change: fn(&mut Value),
    pub rows: &'static [Row],
}

/// A requirement.
pub struct Row {
    /// The part of a spec that it is about.
    pub of: &'static str,
    /// A shell command.
    pub look: &'static str,
    /// All that it prints, but for white space at its ends.
    pub is: &'static str,
}

const fn row(of: &'static str, look: &'static str, is: &'static str) -> Row {
    Row { of, look, is }
}

pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "root",
        change: root,
        rows: ROOT,
    },
    Setting {
        name: "user",
        change: user,
        rows: USER,
    },
    Setting {
        name: "bare",
        change: bare,
        rows: BARE,
    },
];

/// Much at once, as root.
fn root(spec: &mut Value) {
    spec["hostname"] = json!("boxed");
    spec["domainname"] = json!("example.org");
    let process = &mut spec["process"];
    process["cwd"] = json!("/made/for/this");
    process["env"] = json!(["PATH=/bin", "GREETING=hello world", "EMPTY="]);
    process["args"] = json!(["sh", "-c", "", "zero", "one two"]);
    process["user"]["umask"] = json!(0o027);
    process["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    process["oomScoreAdj"] = json!(321);
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.extend([
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", "size=1m", "mode=1710"]}),
        json!({"destination": "/data/below", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}),
        json!({"destination": "/bound", "type": "bind", "source": "/run/orlop", "options": ["rbind", "ro", "nosuid"]}),
        json!({"destination": "/bound-file", "type": "bind", "source": "/proc/version", "options": ["bind", "ro"]}),
    ]);
    let linux = &mut spec["linux"];
    linux["devices"] = json!([
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/deep/down/block", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/queue", "type": "p", "fileMode": 0o622},
    ]);
    linux["sysctl"] =
        json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"});
    linux["resources"] = json!({
        "memory": {"limit": 64 << 20, "reservation": 16 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 33},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "50331648"},
    });
}

const ROOT: &[Row] = &[
    row(
        "root.readonly, false",
        "echo made >/file; cat /file",
        "made",
    ),
    row("hostname", "hostname", "boxed"),
    row(
        "domainname",
        "cat /proc/sys/kernel/domainname",
        "example.org",
    ),
    row("process.cwd", "pwd", "/made/for/this"),
    row(
        "process.env",
        "env | grep -e GREETING -e EMPTY | sort",
        "EMPTY=\nGREETING=hello world",
    ),
    row("process.args", "echo \"$0|$1|$#\"", "zero|one two|1"),
    row("process.user, uid and gid", "id -u; id -g", "0\n0"),
    row("process.user.umask", "umask", "0027"),
    row(
        "process.rlimits",
        "grep -e 'open files' -e core /proc/self/limits | tr -s ' ' | sed 's/[a-z ]*$//'",
        "Max core file size 0 0\nMax open files 77 99",
    ),
    // CAP_CHOWN and CAP_KILL: inheritable, permitted, effective, bounding, ambient.
    row(
        "process.capabilities of root",
        "grep ^Cap /proc/self/status | sed 's/.*\\(..\\)$/\\1/' | tr '\\n' ' '",
        "00 21 21 21 00",
    ),
    row(
        "process.noNewPrivileges, true",
        "grep NoNewPrivs /proc/self/status | cut -f2",
        "1",
    ),
    row("process.oomScoreAdj", "cat /proc/self/oom_score_adj", "321"),
    row("process.ioPriority", "ionice", "best-effort: prio 6"),
    row(
        "process.scheduler",
        "cut -d' ' -f19,41 /proc/self/stat",
        "5 3",
    ),
    row(
        "mounts, file systems that must be there",
        "for at in /proc /sys /dev/pts /dev/shm; do grep \" $at \" /proc/mounts | cut -d' ' -f3; done | tr '\\n' ' '",
        "proc sysfs devpts tmpfs",
    ),
    row(
        "mounts, options",
        "grep ' /data ' /proc/mounts | cut -d' ' -f4 | tr , '\\n' | grep -e ^no[sde] -e size -e mode | sort | tr '\\n' ' '",
        "mode=1710 nodev noexec nosuid size=1024k",
    ),
    row(
        "mounts, their order",
        "touch /data/x && touch /data/below/x; grep -c ' /data' /proc/mounts",
        "touch: /data/below/x: Read-only file system\n2",
    ),
    row(
        "mounts, bound directories",
        "ls -d /bound/state; touch /bound/x; grep ' /bound ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1,2",
        "/bound/state\ntouch: /bound/x: Read-only file system\nro,nosuid",
    ),
    row("mounts, bound files", "cut -d' ' -f1 /bound-file", "Linux"),
    row(
        "linux.rootfsPropagation, unsaid",
        "grep ' / / ' /proc/self/mountinfo | grep -c shared:",
        "0",
    ),
    row(
        "linux, default devices",
        "for name in null zero full random urandom tty; do stat -c '%F %t:%T %a' /dev/$name; done | sed 's/character special file/c/'",
        "c 1:3 666\nc 1:5 666\nc 1:7 666\nc 1:8 666\nc 1:9 666\nc 5:0 666",
    ),
    row("linux, /dev/ptmx", "readlink /dev/ptmx", "pts/ptmx"),
    row(
        "linux, links in /dev",
        "for name in fd stdin stdout stderr; do readlink /dev/$name; done",
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2",
    ),
    row(
        "linux.devices",
        "stat -c '%t:%T %a %u:%g' /dev/extra; stat -c '%F %t:%T %a' /dev/deep/down/block; stat -c '%F' /dev/queue",
        "1:7 640 5:6\nblock special file 7:3 600\nfifo",
    ),
    row(
        "linux.namespaces, of its own",
        "echo $$; cat /proc/self/cgroup",
        "1\n0::/",
    ),
    row(
        "linux.sysctl, of a namespace of its own",
        "cat /proc/sys/kernel/shm_rmid_forced",
        "1",
    ),
    row(
        "linux.sysctl, of the network",
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "80",
    ),
    row(
        "linux.maskedPaths",
        "wc -c </proc/kcore; ls /sys/firmware | wc -l; touch /sys/firmware/x",
        "0\n0\ntouch: /sys/firmware/x: Read-only file system",
    ),
    row(
        "linux.readonlyPaths",
        "(echo 1 >/proc/sys/kernel/panic) 2>&1 | sed 's/.*: //'; (echo h >/proc/sysrq-trigger) 2>&1 | sed 's/.*: //'",
        "Read-only file system\nRead-only file system",
    ),
    row(
        "linux.resources.memory",
        "cd /sys/fs/cgroup; cat memory.max memory.low",
        "67108864\n16777216",
    ),
    // The weight is what newer runc makes of the shares.
    row(
        "linux.resources.cpu",
        "cd /sys/fs/cgroup; cat cpu.max cpu.weight cpuset.cpus",
        "50000 100000\n59\n0",
    ),
    row("linux.resources.pids", "cat /sys/fs/cgroup/pids.max", "33"),
    row(
        "linux.resources.hugepageLimits",
        "cat /sys/fs/cgroup/hugetlb.2MB.max",
        "4194304",
    ),
    row(
        "linux.resources.unified",
        "cat /sys/fs/cgroup/memory.high",
        "50331648",
    ),
    row(
        "linux.cgroupsPath, where nothing is written to it",
        "mkdir /sys/fs/cgroup/x 2>&1 | sed 's/.*: //'",
        "Read-only file system",
    ),
];

/// Little, as somebody else.
fn user(spec: &mut Value) {
    spec["root"]["readonly"] = json!(true);
    let process = &mut spec["process"];
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6]});
    let names = json!(["CAP_NET_BIND_SERVICE"]);
    process["noNewPrivileges"] = json!(false);
    process["capabilities"] = json!({
        "bounding": names, "effective": names, "permitted": names, "inheritable": names, "ambient": names,
    });
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.extend(["shared", "slave", "private", "unbindable"].map(|word| {
        json!({"destination": format!("/{word}"), "type": "bind", "source": "/run/orlop", "options": ["bind", word]})
    }));
    let linux = &mut spec["linux"];
    linux["personality"] = json!({"domain": "LINUX32"});
    linux["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
    linux["rootfsPropagation"] = json!("rshared");
    linux["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
    });
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "time"}));
}

const USER: &[Row] = &[
    row(
        "root.readonly, true",
        "touch /file",
        "touch: /file: Read-only file system",
    ),
    row(
        "process.user, another than root",
        "id -u; id -g",
        "1000\n1001",
    ),
    row("process.user.additionalGids", "id -G", "1001 5 6"),
    row(
        "process.capabilities, all five sets",
        "grep ^Cap /proc/self/status | sed 's/.*\\(....\\)$/\\1/' | tr '\\n' ' '",
        "0400 0400 0400 0400 0400",
    ),
    row(
        "process.noNewPrivileges, false",
        "grep NoNewPrivs /proc/self/status | cut -f2",
        "0",
    ),
    row(
        "mounts, propagation",
        "for at in shared slave private unbindable; do grep \" /$at \" /proc/self/mountinfo | cut -d' ' -f7 | cut -d: -f1; done",
        "shared\nmaster\n-\nunbindable",
    ),
    row("linux.personality", "uname -m", "i686"),
    row(
        "linux.timeOffsets",
        "[ $(cut -d. -f1 /proc/uptime) -ge 1000000 ] && echo later",
        "later",
    ),
    row(
        "linux.rootfsPropagation, shared",
        "grep ' / / ' /proc/self/mountinfo | grep -c shared:",
        "1",
    ),
    row(
        "linux.seccomp",
        "grep ^Seccomp: /proc/self/status | cut -f2; mkdir /tmp/x 2>&1 | sed 's/.*: //'",
        "2\nDisk quota exceeded",
    ),
];

/// Only what must be.
fn bare(spec: &mut Value) {
    let process = &mut spec["process"];
    for key in ["noNewPrivileges", "capabilities", "env"] {
        process.as_object_mut().unwrap().remove(key);
    }
    process["args"] = json!(["/bin/sh", "-c", ""]);
    spec.as_object_mut().unwrap().remove("root");
    let linux = spec["linux"].as_object_mut().unwrap();
    linux.remove("maskedPaths");
    linux.remove("readonlyPaths");
}

const BARE: &[Row] = &[
    row("root, unsaid", "/bin/touch /file && echo made", "made"),
    row(
        "process.noNewPrivileges, unsaid",
        "/bin/grep NoNewPrivs /proc/self/status | /bin/cut -f2",
        "0",
    ),
    row(
        "linux.maskedPaths, unsaid",
        "[ $(/bin/ls /sys/firmware | /bin/wc -l) -gt 0 ] && echo there",
        "there",
    ),
];

/// Looks at all rows of a setting in one container.
pub fn look(vm: &AgentVm, setting: &Setting, findings: &mut Findings) {
    /// Stands before what each row shows.
    const MARK: &str = "=====";
    let mut wanted = spec(&["sh", "-c", ""]);
    (setting.change)(&mut wanted);
    let script: String = setting
        .rows
        .iter()
        .map(|row| format!("echo '{MARK}'\n( {} ) 2>&1\n", row.look))
        .collect();
    wanted["process"]["args"][2] = json!(script);
    let (text, status) = match vm.run(setting.name, &wanted) {
        Ok(result) => result,
        Err(error) => {
            findings.note(setting.name, Err(error.to_string()));
            return;
        }
    };
    let mut seen = text.split(MARK).skip(1);
    for row in setting.rows {
        let found = match seen.next().map(str::trim) {
            Some(found) if found == row.is => Ok(()),
            found => Err(format!("{found:?} rather than {:?} ({status})", row.is)),
        };
        findings.note(row.of, found);
    }
}
