//! Filters of system calls, in containers that the agent makes.

use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Agent, IDLE, OUTPUT, capabilities, process, spec};

/// Everything is allowed but to make directories, and all that goes on before the program is executed: of that the profile need know
/// nothing.
fn no_directories() -> Value {
    let calls = [
        "mkdir",
        "mkdirat",
        "accept",
        "accept4",
        "capset",
        "prctl",
        "seccomp",
        "chdir",
        "setresuid",
        "connect",
        "sendmsg",
        "recvmsg",
        "pipe2",
    ];
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
    })
}

const LOOK: &str =
    "grep -e ^Seccomp: -e ^NoNew -e ^CapEff /proc/self/status; mkdir /tmp/new; echo $?";

#[tokio::test]
async fn a_profile_holds_for_the_container_and_what_is_executed_in_it() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    // Who may not gain privileges gets a filter without any; all others only as long as they have the one for it.
    for (name, no_new_privileges, uid) in [
        ("bound", json!(true), 0),
        ("free", json!(false), 0),
        ("unsaid", Value::Null, 0),
        ("user", Value::Null, 1000),
    ] {
        agent.make_root(name);
        std::fs::set_permissions(
            agent.bundle(name).join("rootfs/tmp"),
            std::os::unix::fs::PermissionsExt::from_mode(0o1777),
        )
        .unwrap();
        let fit = |mut process: Value| {
            process["noNewPrivileges"] = no_new_privileges.clone();
            if no_new_privileges.is_null() {
                process.as_object_mut().unwrap().remove("noNewPrivileges");
            }
            process["user"] = json!({"uid": uid, "gid": uid});
            process["capabilities"] = capabilities(&["CAP_KILL"]);
            process
        };
        let mut wanted = spec(&["sh", "-c", LOOK]);
        wanted["process"] = fit(process(&["sh", "-c", LOOK]));
        wanted["linux"]["seccomp"] = no_directories();
        let (stdout, stderr, status) = agent.run(name, &wanted).await;
        let no_new = u8::from(no_new_privileges == json!(true));
        let effective = if uid == 0 { 0x20 } else { 0 };
        let expected =
            format!("CapEff:\t{effective:016x}\nNoNewPrivs:\t{no_new}\nSeccomp:\t2\n1\n");
        assert_eq!(
            (stdout.as_str(), status),
            (expected.as_str(), 0),
            "{name}: {stderr}"
        );
        assert!(stderr.contains("quota exceeded"), "{name}: {stderr}");

        wanted["process"]["args"] = json!(IDLE);
        agent.create(name, &wanted, OUTPUT).await.unwrap();
        agent.start_process(name, "").await.unwrap();
        let look = fit(process(&["sh", "-c", LOOK]));
        let (output, status) = agent.execute(name, "e", &look).await;
        assert!(output.starts_with(&expected), "{name}: {output}");
        assert!(output.contains("quota exceeded"), "{name}: {output}");
        assert_eq!(status, 0);
    }
}

#[tokio::test]
async fn a_call_that_kills_is_seen_in_the_status() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("kill");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let mut wanted = spec(&["mkdir", "/tmp/new"]);
        wanted["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_LOG",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}],
        });
        // SIGSYS
        assert_eq!(agent.run("kill", &wanted).await.2, 128 + 31, "{action}");
    }
}

#[tokio::test]
async fn without_a_profile_there_is_no_filter() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("none");
    let look = spec(&["grep", "^Seccomp:", "/proc/self/status"]);
    assert_eq!(agent.run("none", &look).await.0, "Seccomp:\t0\n");
}

#[tokio::test]
async fn a_profile_that_cannot_be_applied_is_refused() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("bad");
    let mut wanted = spec(&["true"]);
    wanted["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": "/run/listener",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let error = agent.create("bad", &wanted, OUTPUT).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("SCMP_ACT_NOTIFY"), "{error}");
    agent.assert_gone("bad").await;
}
