//! What may be done with a container when, and what is refused.

use orlop_proto::agent::v1::{PauseRequest, ProcessState, ResumeRequest};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::agent::{AgentVm, spec};

/// A requirement, and whether it holds.
pub type Row = (&'static str, fn(&AgentVm) -> Result<(), String>);

pub const ROWS: &[Row] = &[
    ("create, with an id in use", create_twice),
    ("create, the program does not run yet", not_yet),
    ("create, of a malformed spec", malformed),
    ("hooks of every kind", hooks),
    ("start, of what is not created", start_wrongly),
    ("start, of a program that is not there", no_program),
    ("state, from created to stopped", states),
    ("state, of what is not there", nobody),
    ("kill, of created and running containers", kill_live),
    ("kill, of what is not created or running", kill_dead),
    ("delete, of what is not stopped", delete_live),
    ("delete, leaves nothing and frees the id", delete_all),
    (
        "mounts, of a kind that the kernel does not have",
        no_file_system,
    ),
    ("linux.namespaces, one that another container has", join),
];

fn idle() -> Value {
    spec(&["sleep", "1000"])
}

/// That a call is refused with this code.
fn refused<T>(result: Result<T, Status>, code: Code) -> Result<(), String> {
    match result {
        Ok(_) => Err("it is not refused".into()),
        Err(status) if status.code() == code => Ok(()),
        Err(status) => Err(format!("{status}")),
    }
}

fn said(status: Status) -> String {
    status.to_string()
}

fn is<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), String> {
    (found == wanted)
        .then_some(())
        .ok_or_else(|| format!("{found:?} rather than {wanted:?}"))
}

/// Does `what` with a created container, and takes it away.
fn with(
    vm: &AgentVm,
    spec: &Value,
    what: impl FnOnce(&str) -> Result<(), String>,
) -> Result<(), String> {
    const NAME: &str = "subject";
    vm.create(NAME, spec).map_err(said)?;
    let result = what(NAME);
    let _ = vm.signal(NAME, "", libc::SIGKILL);
    let _ = vm.wait(NAME, "");
    vm.delete(NAME, "").map_err(said)?;
    result
}

fn create_twice(vm: &AgentVm) -> Result<(), String> {
    with(vm, &idle(), |name| {
        refused(vm.create(name, &idle()), Code::AlreadyExists)
    })
}

fn not_yet(vm: &AgentVm) -> Result<(), String> {
    let mut spec = spec(&["sh", "-c", "echo ran >/bound/ran; sleep 1000"]);
    let bind = json!({"destination": "/bound", "type": "bind", "source": "/run/orlop", "options": ["bind"]});
    spec["mounts"].as_array_mut().unwrap().push(bind.clone());
    let look = |vm: &AgentVm| {
        let mut look = self::spec(&["sh", "-c", "ls /bound/ran; rm -f /bound/ran"]);
        look["mounts"].as_array_mut().unwrap().push(bind.clone());
        vm.run("looker", &look).map_err(said)
    };
    with(vm, &spec, |name| {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let (before, _) = look(vm)?;
        vm.start_process(name, "").map_err(said)?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        let (after, _) = look(vm)?;
        is(before.contains("No such file"), true)?;
        is(&*after, "/bound/ran\n")
    })
}

fn malformed(vm: &AgentVm) -> Result<(), String> {
    let mut without = idle();
    without.as_object_mut().unwrap().remove("process");
    let mut odd = idle();
    odd["process"]["args"] = json!("sleep 1000");
    let mut no_arguments = idle();
    no_arguments["process"]["args"] = json!([]);
    refused(vm.create("odd", &without), Code::InvalidArgument)?;
    refused(vm.create("odd", &odd), Code::InvalidArgument)?;
    refused(vm.create("odd", &json!([])), Code::InvalidArgument)?;
    refused(vm.create("odd", &no_arguments), Code::Internal)
}

fn hooks(vm: &AgentVm) -> Result<(), String> {
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        let mut spec = idle();
        spec["hooks"] = json!({kind: [{"path": "/bin/true"}]});
        let created = vm.create("hooked", &spec);
        if created.is_ok() {
            let _ = vm.signal("hooked", "", libc::SIGKILL);
            let _ = vm.wait("hooked", "");
            let _ = vm.delete("hooked", "");
        }
        refused(created, Code::InvalidArgument).map_err(|why| format!("{kind}: {why}"))?;
    }
    Ok(())
}

fn start_wrongly(vm: &AgentVm) -> Result<(), String> {
    refused(vm.start_process("nobody", ""), Code::NotFound)?;
    with(vm, &idle(), |name| {
        vm.start_process(name, "").map_err(said)?;
        refused(vm.start_process(name, ""), Code::FailedPrecondition)?;
        vm.signal(name, "", libc::SIGKILL).map_err(said)?;
        vm.wait(name, "").map_err(said)?;
        refused(vm.start_process(name, ""), Code::FailedPrecondition)
    })
}

fn no_program(vm: &AgentVm) -> Result<(), String> {
    match vm.create("none", &spec(&["no-such-program"])) {
        Err(status) => is(status.message().contains("no-such-program"), true),
        Ok(_) => Err("it is not refused".into()),
    }
}

fn states(vm: &AgentVm) -> Result<(), String> {
    with(vm, &idle(), |name| {
        let state = |wanted: ProcessState| {
            let state = vm.state(name).map_err(said)?;
            is(state.state(), wanted)?;
            is(state.pid > 0, true)
        };
        let container = || name.to_owned();
        state(ProcessState::Created)?;
        vm.start_process(name, "").map_err(said)?;
        state(ProcessState::Running)?;
        let pause = PauseRequest {
            container: container(),
        };
        vm.call(async |mut agent| agent.pause(pause).await)
            .map_err(said)?;
        state(ProcessState::Paused)?;
        let resume = ResumeRequest {
            container: container(),
        };
        vm.call(async |mut agent| agent.resume(resume).await)
            .map_err(said)?;
        state(ProcessState::Running)?;
        vm.signal(name, "", libc::SIGTERM).map_err(said)?;
        vm.signal(name, "", libc::SIGKILL).map_err(said)?;
        is(vm.wait(name, "").map_err(said)?, 137)?;
        state(ProcessState::Stopped)
    })
}

fn nobody(vm: &AgentVm) -> Result<(), String> {
    refused(vm.state("nobody"), Code::NotFound)?;
    refused(vm.delete("nobody", ""), Code::NotFound)?;
    refused(vm.signal("nobody", "", libc::SIGKILL), Code::NotFound)
}

fn kill_live(vm: &AgentVm) -> Result<(), String> {
    with(vm, &idle(), |name| {
        vm.signal(name, "", libc::SIGKILL).map_err(said)?;
        is(vm.wait(name, "").map_err(said)?, 137)
    })?;
    let traps = spec(&["sh", "-c", "trap 'exit 9' USR1; while :; do sleep 1; done"]);
    with(vm, &traps, |name| {
        vm.start_process(name, "").map_err(said)?;
        // A shell takes a moment to set its traps.
        std::thread::sleep(std::time::Duration::from_secs(2));
        vm.signal(name, "", libc::SIGUSR1).map_err(said)?;
        is(vm.wait(name, "").map_err(said)?, 9)
    })
}

fn kill_dead(vm: &AgentVm) -> Result<(), String> {
    with(vm, &spec(&["true"]), |name| {
        vm.start_process(name, "").map_err(said)?;
        vm.wait(name, "").map_err(said)?;
        refused(vm.signal(name, "", libc::SIGKILL), Code::NotFound)
    })
}

fn delete_live(vm: &AgentVm) -> Result<(), String> {
    with(vm, &idle(), |name| {
        refused(vm.delete(name, ""), Code::FailedPrecondition)?;
        vm.start_process(name, "").map_err(said)?;
        refused(vm.delete(name, ""), Code::FailedPrecondition)
    })
}

fn delete_all(vm: &AgentVm) -> Result<(), String> {
    let mut look = spec(&[
        "sh",
        "-c",
        "ls /bound/state /bound/bundles; grep -c tmpfs /proc/mounts",
    ]);
    let bind = json!({"destination": "/bound", "type": "bind", "source": "/run/orlop", "options": ["rbind"]});
    look["mounts"].as_array_mut().unwrap().push(bind);
    let before = vm.run("again", &look).map_err(said)?;
    with(vm, &idle(), |_| Ok(()))?;
    let after = vm.run("again", &look).map_err(said)?;
    is(after, before)
}

fn no_file_system(vm: &AgentVm) -> Result<(), String> {
    let mut spec = idle();
    let mount = json!({"destination": "/x", "type": "nofs", "source": "none"});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    refused(vm.create("none", &spec), Code::Internal)
}

fn join(vm: &AgentVm) -> Result<(), String> {
    with(vm, &idle(), |name| {
        let pid = vm.state(name).map_err(said)?.pid;
        vm.start_process(name, "").map_err(said)?;
        let mut spec = spec(&["sh", "-c", "ps | grep -c 'sleep 100[0]'; echo $$"]);
        spec["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{pid}/ns/pid"));
        let (text, _) = vm.run("joiner", &spec).map_err(said)?;
        let mut lines = text.lines();
        is(lines.next(), Some("1"))?;
        is(lines.next() != Some("1"), true)
    })
}
