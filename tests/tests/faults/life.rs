//! A pod's life, and what is done to it at one moment.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use orlop_testbed::containerd::HANDLER;
use orlop_testbed::containerd::cri::{Container, Cri, Pod, v1};
use orlop_testbed::leaks::Thing;
use tonic::Status;

use super::common::Stage;
use super::victim::{self, Victim};

/// How long a call may take, on a machine that emulates the pods' host.
pub const LIMIT: Duration = Duration::from_secs(240);

/// A moment of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The sandbox is being made.
    SandboxStarts,
    /// It is there, and has no VM yet.
    SandboxIsThere,
    /// The first container is being started, so long after the victim has come.
    ContainerStarts(Duration),
    /// A container runs and does nothing.
    Runs,
    /// A command runs in a container.
    Executes,
    /// A container writes without an end.
    Writes,
    /// A container that does not want to end is asked to.
    Stops,
    /// The only container has ended, and the sandbox has not.
    HasEnded,
    /// The pod is being removed.
    IsRemoved,
}

/// What the pod's container does.
fn script(moment: Moment) -> &'static str {
    match moment {
        Moment::HasEnded => "exit 0",
        Moment::Stops => "trap '' TERM; echo ready; while :; do sleep 1; done",
        Moment::Writes => "while :; do echo of its noise; usleep 2000; done",
        _ => "trap 'exit 0' TERM; while :; do sleep 1; done",
    }
}

/// Lives a pod's life with a strike in it, and looks that all is well afterwards.
pub fn with(stage: Stage, victim: Victim, moment: Moment) {
    let cri = stage.cri();
    let name = "fault";
    let make = || cri.run_pod_changed(name, HANDLER, privileged);
    let pod = match moment {
        Moment::SandboxStarts => answered(during(make, || victim.strike(Duration::ZERO))),
        _ => Some(make().unwrap()),
    };
    if let Some(pod) = &pod {
        in_sandbox(&cri, pod, victim, moment);
    }
    let cri = match victim {
        // It is another one now, and the old connection is broken.
        Victim::Containerd => {
            stage.node.wait_until_ready(|| false).unwrap();
            stage.cri()
        }
        _ => cri,
    };
    for id in cri.pods().unwrap() {
        // What has not noticed yet may say so once.
        if let Err(error) = cri.remove_pod_of_id(&id) {
            println!("  who removed it: {}", error.message());
            cri.remove_pod_of_id(&id).unwrap();
        }
    }
    remove_cgroups();
    stage.leaves_nothing_but(|thing| {
        let is_containerd = |command: &str| command.contains("containerd --config");
        matches!(thing, Thing::Process(_, command) if is_containerd(command))
    });
}

/// What happens once there is a sandbox.
fn in_sandbox(cri: &Cri, pod: &Pod, victim: Victim, moment: Moment) {
    let strike = || victim.strike(Duration::ZERO);
    if moment == Moment::SandboxIsThere {
        strike();
        return;
    }
    let words = ["sh", "-c", script(moment)];
    let container = Container {
        memory: 32 << 20,
        privileged: true,
        ..Container::busybox("main", &words)
    };
    let start = || cri.run(pod, &container);
    if let Moment::ContainerStarts(after) = moment {
        answered(during(start, || victim.strike(after)));
        return;
    }
    let main = start().unwrap();
    match moment {
        Moment::Executes if victim == Victim::Guest => victim::panic(cri, &main),
        Moment::Executes => {
            let long = || cri.exec(&main, &["sleep", "1000"]);
            let strike = || {
                thread::sleep(Duration::from_secs(3));
                victim.strike(Duration::ZERO);
            };
            let done = during(long, strike);
            if let Some(done) = answered(done) {
                assert_ne!(done.exit_code, 0, "nobody ended it");
            }
        }
        Moment::Stops => {
            while !cri.log(pod, "main").unwrap().contains("ready") {
                thread::sleep(Duration::from_millis(100));
            }
            let stop = || cri.stop(&main, 20);
            let strike = || {
                thread::sleep(Duration::from_secs(2));
                victim.strike(Duration::ZERO);
            };
            answered(during(stop, strike));
        }
        Moment::HasEnded => {
            cri.wait(&main, LIMIT).unwrap();
            strike();
        }
        Moment::IsRemoved => {
            answered(during(|| cri.remove_pod(pod), strike));
            return;
        }
        _ if victim == Victim::Guest => victim::panic(cri, &main),
        _ => strike(),
    }
    if victim == Victim::Containerd {
        goes_on(cri, &main, moment);
    } else {
        let status = cri.wait(&main, LIMIT).unwrap();
        println!(
            "  the container: {} {} {}",
            status.exit_code, status.reason, status.message
        );
        let refused = cri.exec(&main, &["true"]).unwrap_err();
        println!("  who comes later: {}", refused.message());
    }
}

/// The pod has not noticed that containerd was another for a while.
fn goes_on(cri: &Cri, container: &str, moment: Moment) {
    let end = std::time::Instant::now() + LIMIT;
    let status = loop {
        match cri.status(container) {
            Ok(status) => break status,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        thread::sleep(Duration::from_millis(200));
    };
    if moment == Moment::HasEnded {
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        return;
    }
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    let done = cri.exec(container, &["true"]).unwrap();
    assert_eq!(done.exit_code, 0);
}

/// Makes a call, and strikes meanwhile.
fn during<T: Send>(call: impl FnOnce() -> T + Send, strike: impl FnOnce()) -> T {
    thread::scope(|scope| {
        let call = scope.spawn(call);
        strike();
        call.join().expect("a call that is answered")
    })
}

/// What a call was answered with; why it failed is one line for people.
fn answered<T>(answer: Result<T, Status>) -> Option<T> {
    match answer {
        Ok(done) => Some(done),
        Err(error) => {
            let message = error.message();
            println!("  who waited: {message}");
            assert!(!message.trim().is_empty(), "{error:?}");
            assert_ne!(error.code(), tonic::Code::DeadlineExceeded, "{error:?}");
            None
        }
    }
}

fn privileged(config: &mut v1::PodSandboxConfig) {
    if let Some(linux) = &mut config.linux {
        linux.security_context = Some(v1::LinuxSandboxSecurityContext {
            privileged: true,
            ..v1::LinuxSandboxSecurityContext::default()
        });
    }
}

/// Removes what the kubelet would: the cgroups of pods that it could not be told of.
fn remove_cgroups() {
    let groups = fs::read_dir(Path::new("/sys/fs/cgroup")).unwrap().flatten();
    for group in groups {
        let name = group.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("pod-")) {
            // One with processes stays, and whoever looks finds it.
            let _ = fs::remove_dir(group.path());
        }
    }
}
