//! Containers that want more memory than they may have.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::containerd::cri::Container;
use orlop_testbed::containerd::ctr::Running;

use crate::common::{Stage, stage};

const LIMIT: Duration = Duration::from_secs(240);
const MEMORY: i64 = 32 << 20;

/// A shell that takes memory without end.
const GREEDY: &str = "x=0123456789abcdef; while :; do x=$x$x; done";

/// containerd's events, from the start of this on.
struct Events(Running);

impl Events {
    fn listen(stage: &Stage) -> Self {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(stage.node.socket());
        command.arg("events");
        let running = Running::start(command, &[]).unwrap();
        // It does not say when it listens.
        std::thread::sleep(Duration::from_secs(3));
        Self(running)
    }

    /// The topics of those that name `container`.
    fn of(self, container: &str) -> Vec<String> {
        // The last are on their way.
        std::thread::sleep(Duration::from_secs(3));
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        let output = self.0.wait(LIMIT).unwrap().output();
        let topic = |line: &str| {
            let topic = line.split(' ').find(|word| word.starts_with("/tasks/"));
            topic.map(str::to_owned)
        };
        let lines = output.lines().filter(|line| line.contains(container));
        lines.filter_map(topic).collect()
    }
}

#[test]
fn a_container_that_is_killed_for_want_of_memory_is_said_to_be() {
    let Some(stage) = stage() else { return };
    let events = Events::listen(&stage);
    let cri = stage.cri();
    let pod = cri.run_pod("greedy").unwrap();
    let command = ["sh", "-c", GREEDY];
    let container = Container {
        memory: MEMORY,
        ..Container::busybox("greedy", &command)
    };
    let container = cri.run(&pod, &container).unwrap();
    let status = cri.wait(&container, LIMIT).unwrap();
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));

    // One that is merely killed is not.
    let waits = Container {
        memory: MEMORY,
        ..Container::busybox("killed", &["sleep", "1000"])
    };
    let killed = cri.run(&pod, &waits).unwrap();
    cri.stop(&killed, 0).unwrap();
    let status = cri.wait(&killed, LIMIT).unwrap();
    assert_eq!((status.exit_code, &*status.reason), (137, "Error"));

    cri.remove_pod(&pod).unwrap();
    let topics = events.of(&container);
    assert_eq!(
        topics,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/oom",
            "/tasks/exit",
            "/tasks/delete"
        ],
    );
    stage.leaves_nothing();
}

#[test]
fn a_process_that_is_killed_for_want_of_memory_is_told_while_its_container_goes_on() {
    let Some(stage) = stage() else { return };
    let events = Events::listen(&stage);
    let cri = stage.cri();
    let pod = cri.run_pod("frugal").unwrap();
    let waits = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
    let container = Container {
        memory: MEMORY,
        ..Container::busybox("frugal", &waits)
    };
    let container = cri.run(&pod, &container).unwrap();
    let done = cri.exec(&container, &["sh", "-c", GREEDY]).unwrap();
    assert_eq!(done.exit_code, 137);
    let done = cri.exec(&container, &["echo", "alive"]).unwrap();
    assert_eq!(done.stdout, b"alive\n");
    let topics = events.of(&container);
    let kills = topics.iter().filter(|topic| *topic == "/tasks/oom");
    assert_eq!(kills.count(), 1, "{topics:?}");
    assert!(!topics.contains(&"/tasks/delete".to_owned()), "{topics:?}");
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}
