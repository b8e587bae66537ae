//! Seccomp, as people ask for it.

use orlop_testbed::containerd::RUNTIME;
use orlop_testbed::containerd::cri::Container;
use orlop_testbed::containerd::ctr::Done;
use orlop_testbed::image;

use crate::common::{Stage, stage, unique};

/// Says whether there is a filter, and makes a call that containerd's profile forbids and the kernel does not.
const LOOK: &str = "grep -e ^Seccomp: -e ^NoNewPrivs: /proc/self/status; busybox unshare -U echo a namespace of mine";

const BEHIND_A_FILTER: &str = "Seccomp:\t2\n";
const UNHINDERED: &str = "Seccomp:\t0\na namespace of mine\n";

fn run(stage: &Stage, flags: &[&str]) -> Done {
    let name = unique("filter");
    let mut line = vec!["run", "--rm", "--runtime", RUNTIME];
    line.extend(flags);
    line.extend([image::BUSYBOX, &name, "sh", "-c", LOOK]);
    stage.node.ctr("default", &line).unwrap()
}

#[test]
fn a_profile_is_there_when_it_is_asked_for_and_only_then() {
    let Some(stage) = stage() else { return };
    let done = run(&stage, &["--seccomp"]);
    assert!(
        done.output().ends_with(BEHIND_A_FILTER),
        "{}",
        done.output()
    );
    let error = done.error();
    assert!(error.contains("Operation not permitted"), "{error}");
    assert_ne!(done.status, 0);

    for flags in [&[][..], &["--privileged"]] {
        let done = run(&stage, flags);
        let output = done.output();
        assert!(output.ends_with(UNHINDERED), "{flags:?}: {output}");
    }
    stage.leaves_nothing();
}

#[test]
fn a_profile_holds_for_commands_in_a_pods_container_too() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("filtered").unwrap();
    let waits = "grep ^Seccomp: /proc/self/status; trap 'exit 0' TERM; while :; do sleep 1; done";
    let command = ["sh", "-c", waits];
    for (name, seccomp, output, status) in [
        ("default", true, BEHIND_A_FILTER, 1),
        ("unconfined", false, UNHINDERED, 0),
    ] {
        let container = Container {
            seccomp,
            ..Container::busybox(name, &command)
        };
        let container = cri.run(&pod, &container).unwrap();
        let done = cri.exec(&container, &["sh", "-c", LOOK]).unwrap();
        // The kubelet lets programs gain privileges unless it is told otherwise: the other way to load a filter.
        let expected = format!("NoNewPrivs:\t0\n{output}");
        assert_eq!(String::from_utf8_lossy(&done.stdout), expected, "{name}");
        assert_eq!(done.exit_code, status, "{name}");
        let own = cri.log(&pod, name).unwrap();
        assert!(!own.is_empty() && output.starts_with(&own), "{name}: {own}");
    }
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}
