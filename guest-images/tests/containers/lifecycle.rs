//! Create, start, exec, signal, pause, delete; and what goes wrong.

use std::fs;
use std::time::{Duration, Instant};

use orlop_proto::agent::v1::{
    PauseRequest, PidsRequest, ProcessState, ResumeRequest, SignalRequest, StateRequest,
    StatsRequest, Stdio, WaitOomRequest,
};
use serde_json::json;
use tonic::Code;

use crate::harness::{Agent, IDLE, OUTPUT, capabilities, process, read_all, skipped, spec};

async fn signal(agent: &mut Agent, name: &str, exec: &str, signal: u32, all: bool) -> Code {
    let request = SignalRequest {
        container: name.into(),
        exec: exec.into(),
        signal,
        all,
    };
    match agent.client.signal(request).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

async fn state(agent: &mut Agent, name: &str, exec: &str) -> ProcessState {
    let request = StateRequest {
        container: name.into(),
        exec: exec.into(),
    };
    let response = agent.client.state(request).await.unwrap().into_inner();
    response.state()
}

#[tokio::test]
async fn a_container_runs_and_leaves_nothing() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("one");
    let script = "echo out; echo $GREETING >&2; cat /proc/sys/kernel/hostname; echo $$; exit 7";
    let (stdout, stderr, status) = agent.run("one", &spec(&["sh", "-c", script])).await;
    assert_eq!(stdout, "out\nboxed\n1\n");
    assert_eq!(stderr, "hello\n");
    assert_eq!(status, 7);
    agent.assert_gone("one").await;
    // The name is free again.
    assert_eq!(agent.run("one", &spec(&["true"])).await.2, 0);
}

#[tokio::test]
async fn the_container_is_what_the_spec_says() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("two");
    let mut wanted = spec(&[
        "sh",
        "-c",
        "id; pwd; grep Cap /proc/self/status; grep NoNewPrivs /proc/self/status; \
         grep SigIgn /proc/self/status; \
         grep 'Max open files' /proc/self/limits; ls /proc/scsi; \
         echo x > /proc/sys/kernel/hostname; echo x > /file; ls /proc/self/fd | wc -l",
    ]);
    wanted["root"]["readonly"] = json!(true);
    wanted["process"]["cwd"] = json!("/made/for/this");
    wanted["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6]});
    wanted["process"]["capabilities"] = capabilities(&["CAP_KILL"]);
    wanted["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    let (stdout, stderr, _) = agent.run("two", &wanted).await;
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[0], "uid=1000 gid=1001 groups=5,6");
    assert_eq!(lines[1], "/made/for/this");
    let text = &stdout;
    assert!(text.contains("CapBnd:\t0000000000000020"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    // The agent itself ignores SIGPIPE (13).
    let ignored = lines.iter().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_eq!(ignored & 1 << 12, 0);
    let limits = lines.iter().find(|line| line.starts_with("Max")).unwrap();
    assert_eq!(
        limits.split_whitespace().collect::<Vec<_>>()[3..5],
        ["77", "99"]
    );
    // 0, 1, 2, and the one that ls lists them with.
    assert_eq!(lines.last(), Some(&"4"));
    assert!(stderr.contains("hostname: Read-only") || stderr.contains("hostname: Permission"));
    assert!(stderr.contains("/file: Read-only"), "{stderr}");
}

#[tokio::test]
async fn what_cannot_start_says_why_at_once() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("bad");
    fs::write(agent.bundle("bad").join("rootfs/bin/data"), "no program").unwrap();
    fs::create_dir_all(agent.bundle("empty").join("rootfs")).unwrap();
    let mut bad_cwd = spec(&["true"]);
    bad_cwd["process"]["cwd"] = json!("/bin/busybox");
    let mut bad_type = spec(&["true"]);
    bad_type["mounts"] = json!([{"destination": "/x", "type": "nofs", "source": "none"}]);
    let mut bad_source = spec(&["true"]);
    bad_source["mounts"] =
        json!([{"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]}]);
    for (bundle, spec, why) in [
        (
            "bad",
            &spec(&["nope"]),
            "exec: \"nope\": executable file not found in $PATH",
        ),
        (
            "bad",
            &spec(&["/nope"]),
            "exec: \"/nope\": stat /nope: no such file or directory",
        ),
        ("bad", &spec(&["data"]), "exec: \"data\": permission denied"),
        ("bad", &bad_cwd, "not a directory"),
        ("bad", &bad_type, "has no file system \"nofs\""),
        ("bad", &bad_source, "/nowhere"),
        ("empty", &spec(&["true"]), "is empty"),
        ("absent", &spec(&["true"]), "no such file"),
    ] {
        let begun = Instant::now();
        let error = agent.create(bundle, spec, OUTPUT).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{error}");
        let message = error.message();
        eprintln!("{why}: {message}");
        assert!(
            message.to_lowercase().contains(&why.to_lowercase()),
            "{message}"
        );
        assert!(!message.contains('\n'));
        assert!(begun.elapsed() < Duration::from_secs(20));
        agent.assert_gone(bundle).await;
    }
}

#[tokio::test]
async fn a_program_that_the_kernel_refuses_is_an_error_of_start() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("odd");
    let program = agent.bundle("odd").join("rootfs/bin/odd");
    fs::write(&program, "\0\0 not a program").unwrap();
    fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    agent.create("odd", &spec(&["odd"]), OUTPUT).await.unwrap();
    let error = agent.start_process("odd", "").await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert_eq!(error.message(), "exec: \"odd\": exec format error");
    agent
        .create("run", &spec(&["x"]), OUTPUT)
        .await
        .unwrap_err();

    agent.make_root("run");
    agent.create("run", &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process("run", "").await.unwrap();
    for (exec, program, why) in [
        ("e1", "nope", "exec: \"nope\": executable file not found"),
        ("e2", "/proc/version", "permission denied"),
    ] {
        agent
            .exec("run", exec, &process(&[program]), OUTPUT)
            .await
            .unwrap();
        let error = agent.start_process("run", exec).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal);
        assert!(error.message().contains(why), "{error}");
        assert_eq!(state(&mut agent, "run", exec).await, ProcessState::Stopped);
        agent.delete("run", exec).await.unwrap();
    }
}

#[tokio::test]
async fn calls_that_the_state_forbids_are_refused() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("c");
    let create = agent.create("../c", &spec(&IDLE), OUTPUT).await;
    assert_eq!(create.unwrap_err().code(), Code::InvalidArgument);
    let mut client = agent.client.clone();
    agent.create("c", &spec(&IDLE), OUTPUT).await.unwrap();
    assert_eq!(state(&mut agent, "c", "").await, ProcessState::Created);
    let create = agent.create("c", &spec(&IDLE), OUTPUT).await;
    assert_eq!(create.unwrap_err().code(), Code::AlreadyExists);
    let delete = agent.delete("c", "").await;
    assert_eq!(delete.unwrap_err().code(), Code::FailedPrecondition);
    let pause = PauseRequest {
        container: "c".into(),
    };
    let pause = client.pause(pause).await;
    assert_eq!(pause.unwrap_err().code(), Code::FailedPrecondition);
    agent
        .exec("c", "early", &process(&["true"]), OUTPUT)
        .await
        .unwrap();
    let start = agent.start_process("c", "early").await;
    assert_eq!(start.unwrap_err().code(), Code::FailedPrecondition);
    agent.start_process("c", "").await.unwrap();
    assert_eq!(state(&mut agent, "c", "").await, ProcessState::Running);
    let start = agent.start_process("c", "").await;
    assert_eq!(start.unwrap_err().code(), Code::FailedPrecondition);
    let exec = agent.exec("c", "early", &process(&["true"]), OUTPUT).await;
    assert_eq!(exec.unwrap_err().code(), Code::AlreadyExists);
    let exec = agent.exec("c", "", &process(&["true"]), OUTPUT).await;
    assert_eq!(exec.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(
        signal(&mut agent, "c", "", 0, false).await,
        Code::InvalidArgument
    );
    assert_eq!(
        signal(&mut agent, "c", "", 99, true).await,
        Code::InvalidArgument
    );
    assert_eq!(signal(&mut agent, "d", "", 9, false).await, Code::NotFound);
    assert_eq!(signal(&mut agent, "c", "x", 9, false).await, Code::NotFound);
    assert_eq!(signal(&mut agent, "c", "", 9, false).await, Code::Ok);
    // Wait answers again and again.
    for _ in 0..2 {
        assert_eq!(agent.wait("c", "").await.unwrap().exit_status, 137);
    }
    assert_eq!(state(&mut agent, "c", "").await, ProcessState::Stopped);
    assert_eq!(signal(&mut agent, "c", "", 9, false).await, Code::NotFound);
    agent.delete("c", "").await.unwrap();
    assert_eq!(
        agent.delete("c", "").await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn signals_reach_one_process_or_all() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("s");
    let script = "trap 'term=1' TERM; sleep 1000 & echo up; wait; echo term $term; wait";
    agent
        .create("s", &spec(&["sh", "-c", script]), OUTPUT)
        .await
        .unwrap();
    let mut stdout = agent
        .stream("s", "", orlop_proto::agent::v1::Stream::Stdout)
        .await
        .unwrap();
    agent.start_process("s", "").await.unwrap();
    let mut up = [0; 3];
    tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut up)
        .await
        .unwrap();
    for exec in ["a", "b"] {
        agent
            .exec("s", exec, &process(&IDLE), OUTPUT)
            .await
            .unwrap();
        agent.start_process("s", exec).await.unwrap();
    }
    let pids = PidsRequest {
        container: "s".into(),
    };
    let pids = agent.client.pids(pids).await.unwrap().into_inner().pids;
    assert_eq!(pids.len(), 4);
    assert_eq!(signal(&mut agent, "s", "a", 15, false).await, Code::Ok);
    assert_eq!(agent.wait("s", "a").await.unwrap().exit_status, 143);
    assert_eq!(state(&mut agent, "s", "b").await, ProcessState::Running);
    assert_eq!(signal(&mut agent, "s", "", 15, true).await, Code::Ok);
    assert_eq!(agent.wait("s", "b").await.unwrap().exit_status, 143);
    let exit = agent.wait("s", "").await.unwrap();
    assert_eq!(exit.exit_status, 0);
    assert_eq!(read_all(stdout).await, "term 1\n");
    assert!(exit.exited_at_ns > 1_600_000_000_000_000_000);
}

#[tokio::test]
async fn a_killed_container_takes_everything_along() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("k");
    // Without a process namespace only the control group holds the processes together.
    let mut wanted = spec(&["sh", "-c", "sleep 1000 & sleep 1001"]);
    wanted["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]);
    agent.create("k", &wanted, OUTPUT).await.unwrap();
    agent.start_process("k", "").await.unwrap();
    assert_eq!(signal(&mut agent, "k", "", 9, false).await, Code::Ok);
    assert_eq!(agent.wait("k", "").await.unwrap().exit_status, 137);
    agent.delete("k", "").await.unwrap();
    agent.assert_gone("k").await;
}

#[tokio::test]
async fn a_paused_container_stands_still() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("p");
    agent.create("p", &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process("p", "").await.unwrap();
    let pause = PauseRequest {
        container: "p".into(),
    };
    agent.client.pause(pause.clone()).await.unwrap();
    agent.client.pause(pause).await.unwrap();
    assert_eq!(state(&mut agent, "p", "").await, ProcessState::Paused);
    agent
        .exec("p", "e", &process(&["true"]), OUTPUT)
        .await
        .unwrap();
    let start = agent.start_process("p", "e").await;
    assert_eq!(start.unwrap_err().code(), Code::FailedPrecondition);
    let resume = ResumeRequest {
        container: "p".into(),
    };
    agent.client.resume(resume).await.unwrap();
    assert_eq!(state(&mut agent, "p", "").await, ProcessState::Running);
    agent.start_process("p", "e").await.unwrap();
    assert_eq!(agent.wait("p", "e").await.unwrap().exit_status, 0);
    let stats = StatsRequest {
        container: "p".into(),
    };
    let stats = agent.client.stats(stats).await.unwrap().into_inner();
    assert!(stats.cpu_stat.contains_key("usage_usec"), "{stats:?}");
    // A frozen container can be killed.
    let pause = PauseRequest {
        container: "p".into(),
    };
    agent.client.pause(pause).await.unwrap();
    assert_eq!(signal(&mut agent, "p", "", 9, true).await, Code::Ok);
    assert_eq!(agent.wait("p", "").await.unwrap().exit_status, 137);
    agent.delete("p", "").await.unwrap();
}

#[tokio::test]
async fn exec_joins_the_container() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("j");
    agent.create("j", &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process("j", "").await.unwrap();
    for (exec, script, output, status) in [
        (
            "one",
            "cat /proc/1/cmdline | tr '\\0' ' '",
            "sleep 1000 ",
            0,
        ),
        ("two", "cat /proc/sys/kernel/hostname; exit 4", "boxed\n", 4),
        ("three", "kill -KILL $$", "", 137),
        ("four", "grep ^0: /proc/self/cgroup", "0::/\n", 0),
    ] {
        assert_eq!(
            agent.shell("j", exec, script).await,
            (output.to_owned(), status)
        );
    }
    let mut other = process(&["sh", "-c", "id -u; pwd"]);
    other["user"] = json!({"uid": 42, "gid": 42});
    other["cwd"] = json!("/tmp");
    agent.exec("j", "user", &other, OUTPUT).await.unwrap();
    let stdout = agent
        .stream("j", "user", orlop_proto::agent::v1::Stream::Stdout)
        .await
        .unwrap();
    agent.start_process("j", "user").await.unwrap();
    assert_eq!(read_all(stdout).await, "42\n/tmp\n");
    agent.delete("j", "user").await.unwrap();
    // Probes are executed for as long as a pod lives: they must leave nothing.
    let mut left: Vec<_> = ["state/j", "bundles/j"]
        .iter()
        .flat_map(|place| fs::read_dir(agent.directory.path().join(place)).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "config.json",
            "notify.sock",
            "state.json",
            "youki_config.json"
        ]
    );
}

#[tokio::test]
async fn limits_reach_the_control_group() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.contains("memory") {
        skipped("this machine's cgroup v2 has no memory controller");
        return;
    }
    agent.make_root("l");
    let mut wanted = spec(&IDLE);
    wanted["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 20},
    });
    agent.create("l", &wanted, Stdio::default()).await.unwrap();
    agent.start_process("l", "").await.unwrap();
    let stats = StatsRequest {
        container: "l".into(),
    };
    let stats = agent.client.stats(stats).await.unwrap().into_inner();
    assert_eq!(stats.memory_max, 64 << 20);
    assert_eq!(stats.pids_max, 20);
    assert_eq!(stats.pids_current, 1);
    assert!(stats.memory_current > 0);
    assert!(stats.memory_stat.contains_key("anon"));
    assert!(stats.memory_events.contains_key("oom_kill"));
    // The kernel ends who takes more, and whoever waits for that hears of it.
    let wait = |seen| WaitOomRequest {
        container: "l".into(),
        seen,
    };
    let mut client = agent.client.clone();
    let waiting = tokio::spawn(async move { client.wait_oom(wait(0)).await });
    let greedy = "x=0123456789; while true; do x=$x$x; done";
    assert_eq!(agent.shell("l", "greedy", greedy).await.1, 137);
    let kills = waiting.await.unwrap().unwrap().into_inner().kills;
    assert!(kills > 0);
    // With the container ends the waiting.
    let mut client = agent.client.clone();
    let waiting = tokio::spawn(async move { client.wait_oom(wait(kills)).await });
    assert_eq!(signal(&mut agent, "l", "", 9, false).await, Code::Ok);
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().kills, kills);
    agent.delete("l", "").await.unwrap();
    let gone = agent.client.wait_oom(wait(0)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test]
async fn a_second_container_shares_the_firsts_namespaces() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("pause");
    agent.make_root("work");
    let pid = agent.create("pause", &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process("pause", "").await.unwrap();
    let mut wanted = spec(&["sh", "-c", "cat /proc/sys/kernel/hostname; echo $$"]);
    wanted["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"},
        {"type": "pid", "path": format!("/proc/{pid}/ns/pid")},
        {"type": "uts", "path": format!("/proc/{pid}/ns/uts")},
        {"type": "ipc", "path": format!("/proc/{pid}/ns/ipc")},
    ]);
    wanted.as_object_mut().unwrap().remove("hostname");
    let (stdout, stderr, status) = agent.run("work", &wanted).await;
    assert_eq!((stderr.as_str(), status), ("", 0));
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some("boxed"));
    assert_ne!(lines.next(), Some("1"));
}

#[tokio::test]
async fn many_containers_one_after_another_leave_nothing() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("m");
    for _ in 0..10 {
        assert_eq!(agent.run("m", &spec(&["sh", "-c", "exit 5"])).await.2, 5);
    }
    agent.assert_gone("m").await;
}
