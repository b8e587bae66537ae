//! Containers that do what they should not, all in one guest: the others, the agent and the host have nothing of it.

use std::time::Duration;

use orlop_proto::agent::v1::{ProcessState, StatsRequest, Stream};
use orlop_testbed::stories::size;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::agent::{AgentVm, OUTPUT, spec};
use crate::common::stage;
use crate::guest::until;

/// The largest that the agent may be, in KiB.
const AGENT_KIB: u64 = 8 << 10;

/// Has a shell script run in a container beside what it does already: its output and its exit status.
fn shell(vm: &AgentVm, container: &str, exec: &str, script: &str) -> Result<(String, u32), Status> {
    begin(vm, container, exec, script)?;
    let done = vm.finish(container, exec);
    let _ = vm.delete(container, exec);
    done
}

/// The same, but that it is not started yet.
fn begin(vm: &AgentVm, container: &str, exec: &str, script: &str) -> Result<(), Status> {
    let mut process = spec(&["sh", "-c", script])["process"].take();
    process["capabilities"] = capabilities();
    vm.exec(container, exec, &process, OUTPUT)
}

/// Starts a container that does nothing.
fn idle(vm: &AgentVm, name: &str, change: impl FnOnce(&mut Value)) {
    let mut spec = spec(&["sleep", "100000"]);
    change(&mut spec);
    vm.create(name, &spec).unwrap();
    vm.start_process(name, "").unwrap();
}

fn end(vm: &AgentVm, name: &str) {
    vm.signal(name, "", libc::SIGKILL).unwrap();
    assert_eq!(vm.wait(name, "").unwrap(), 137);
    vm.delete(name, "").unwrap();
}

/// All that a process needs that looks into others, or writes into them.
fn capabilities() -> Value {
    let names = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_KILL"];
    json!({"bounding": names, "effective": names, "permitted": names})
}

/// Is in the namespace of the guest's own processes, and may do to them what root may.
fn of_the_guest(spec: &mut Value) {
    spec["process"]["capabilities"] = capabilities();
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
}

#[test]
fn what_a_container_does_is_not_what_others_suffer_from() {
    if stage().is_none() {
        return;
    }
    let vm = AgentVm::start();
    idle(&vm, "good", of_the_guest);
    for harm in [
        every_exit_status_and_signal_arrives,
        many_are_executed_at_once,
        a_fork_bomb_is_kept_to_its_limit,
        who_ignores_a_request_to_end_is_killed,
        orphans_are_reaped,
        a_stream_that_is_cut_is_its_process_own_affair,
        who_takes_all_memory_is_killed_for_it,
    ] {
        harm(&vm);
        let (said, status) = shell(&vm, "good", "after", "echo alive").unwrap();
        assert_eq!((said.trim(), status), ("alive", 0));
    }
    let script = "grep VmRSS /proc/1/status | tr -cd 0-9";
    let (said, _) = shell(&vm, "good", "agent", script).unwrap();
    println!("the agent has {} KiB", said.trim());
    assert!(said.trim().parse::<u64>().unwrap() <= AGENT_KIB, "{said}");
    end(&vm, "good");
    vm.stop();
}

fn every_exit_status_and_signal_arrives(vm: &AgentVm) {
    let step = size(51, 1).try_into().unwrap();
    for status in (0..=255).step_by(step) {
        let (said, ended) = shell(vm, "good", "exits", &format!("exit {status}")).unwrap();
        assert_eq!(ended, status, "{said}");
    }
    for signal in [1, 2, 6, 9, 11, 13, 15] {
        let (said, ended) = shell(vm, "good", "dies", &format!("kill -{signal} $$")).unwrap();
        assert_eq!(ended, 128 + signal, "{said}");
    }
    let missing = json!({"args": ["/no/such/program"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    vm.exec("good", "missing", &missing, OUTPUT).unwrap();
    let error = vm.start_process("good", "missing").unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error}");
    vm.delete("good", "missing").unwrap();
}

fn many_are_executed_at_once(vm: &AgentVm) {
    let names: Vec<_> = (0..size(20, 100)).map(|it| format!("many-{it}")).collect();
    for name in &names {
        // They wait for each other: no one is over before the last one has begun.
        let script = format!(
            "touch /tmp/{name}; until [ $(ls /tmp | grep -c many-) = {} ]; do sleep 1; done; echo {name}",
            names.len()
        );
        begin(vm, "good", name, &script).unwrap();
    }
    std::thread::scope(|scope| {
        let done: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || (name, vm.finish("good", name).unwrap())))
            .collect();
        for done in done {
            let (name, (said, status)) = done.join().unwrap();
            assert_eq!((said.trim(), status), (name.as_str(), 0));
            vm.delete("good", name).unwrap();
        }
    });
}

fn a_fork_bomb_is_kept_to_its_limit(vm: &AgentVm) {
    let limit = 40;
    idle(vm, "bomb", |spec| {
        spec["linux"]["resources"] = json!({"pids": {"limit": limit}});
    });
    let script = "while :; do sh -c 'while :; do sleep 1000 & done' 2>/dev/null; done";
    begin(vm, "bomb", "fuse", script).unwrap();
    vm.start_process("bomb", "fuse").unwrap();
    let processes = || {
        let request = StatsRequest {
            container: "bomb".into(),
        };
        let stats = vm.call(async |mut agent| agent.stats(request).await);
        stats.unwrap().pids_current
    };
    // One comes and goes.
    until("the bomb has all processes that it may have", || {
        processes() >= limit - 1
    });
    for _ in 0..20 {
        let now = processes();
        assert!(now <= limit, "{now}");
    }
    let (said, _) = shell(vm, "good", "count", "ps | grep -c 'sleep 1000$'").unwrap();
    assert!(said.trim().parse::<u64>().unwrap() < limit, "{said}");
    end(vm, "bomb");
}

fn who_ignores_a_request_to_end_is_killed(vm: &AgentVm) {
    let stubborn = spec(&[
        "sh",
        "-c",
        "trap '' TERM; echo ready; while :; do sleep 1; done",
    ]);
    vm.create("stubborn", &stubborn).unwrap();
    let out = vm.stream("stubborn", "", Stream::Stdout);
    vm.start_process("stubborn", "").unwrap();
    assert_eq!(vm.read(out, 6).0, b"ready\n");
    vm.signal("stubborn", "", libc::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let state = vm.state("stubborn").unwrap();
    assert_eq!(state.state(), ProcessState::Running);
    end(vm, "stubborn");
    let error = vm.state("stubborn").unwrap_err();
    assert_eq!(error.code(), Code::NotFound);

    // What has ended takes no further processes.
    vm.create("over", &spec(&["true"])).unwrap();
    vm.start_process("over", "").unwrap();
    assert_eq!(vm.wait("over", "").unwrap(), 0);
    let error = begin(vm, "over", "late", "true").unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    vm.delete("over", "").unwrap();
}

fn orphans_are_reaped(vm: &AgentVm) {
    let script = "for n in 1 2 3 4 5; do sh -c 'sleep 2; exit 3' >/dev/null 2>&1 & done; exit 0";
    assert_eq!(shell(vm, "good", "parent", script).unwrap().1, 0);
    let gone = || {
        let script = "ps -o stat,args | grep -c -e ^Z -e 'sleep 2$'";
        shell(vm, "good", "count", script).unwrap().0.trim() == "0"
    };
    until("the orphans are gone, bodies and all", gone);
}

fn a_stream_that_is_cut_is_its_process_own_affair(vm: &AgentVm) {
    begin(
        vm,
        "good",
        "talker",
        "while :; do echo 0123456789abcdef; done",
    )
    .unwrap();
    let out = vm.stream("good", "talker", Stream::Stdout);
    vm.start_process("good", "talker").unwrap();
    let (read, out) = vm.read(out, 1 << 16);
    assert!(read.starts_with(b"0123456789abcdef\n"));
    drop(out);
    let (said, _) = shell(vm, "good", "beside", "echo heard").unwrap();
    assert_eq!(said.trim(), "heard");
    let _ = vm.signal("good", "talker", libc::SIGKILL);
    vm.wait("good", "talker").unwrap();
    vm.delete("good", "talker").unwrap();
}

fn who_takes_all_memory_is_killed_for_it(vm: &AgentVm) {
    let greedy = spec(&["sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done"]);
    let (said, status) = vm.run("greedy", &greedy).unwrap();
    assert_eq!(status, 137, "{said}");
}

/// The agent is process 1, so that no signal kills it; what is written over its code does.
#[test]
fn a_guest_whose_agent_dies_says_so_and_ends() {
    if stage().is_none() {
        return;
    }
    let vm = AgentVm::start();
    idle(&vm, "evil", of_the_guest);
    // Its own code is what is mapped first.
    let script = "set -- $(grep -m 1 ' r-xp ' /proc/1/maps | tr '-' ' '); \
         dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((0x$1 / 4096)) count=$(((0x$2 - 0x$1) / 4096)) conv=notrunc; echo wrote";
    let said = shell(&vm, "evil", "murder", script);
    println!("{said:?}");
    let (console, status) = vm.crashed();
    assert_eq!(status, 5, "{said:?} {console}");
    assert!(
        console.contains("Kernel panic") && console.contains("kill init"),
        "{said:?} {console}"
    );
}
