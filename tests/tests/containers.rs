//! Single containers, as people run them with `ctr`.

mod common;

use std::time::{Duration, Instant};

use common::{Stage, host_kernel, last_line, processes, stage, unique};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::children;
use orlop_testbed::containerd::RUNTIME;
use orlop_testbed::image;
use orlop_testbed::stories::size;

#[test]
fn a_container_shows_the_guests_kernel_and_ends_with_its_own_status() {
    let Some(stage) = stage() else { return };
    let done = stage.run("uname -r; exit 7");
    assert_eq!(done.status, 7, "{}", done.error());
    let kernel = done.output();
    let kernel = kernel.trim();
    assert!(kernel.starts_with(|c: char| c.is_ascii_digit()), "{kernel}");
    assert_ne!(
        kernel,
        host_kernel(),
        "the container ran on the host's kernel"
    );
    stage.leaves_nothing();
}

#[test]
fn output_and_error_stay_apart() {
    let Some(stage) = stage() else { return };
    let done = stage.run("echo to-output; echo to-error >&2");
    assert_eq!(done.output(), "to-output\n");
    assert_eq!(done.error(), "to-error\n");
    assert_eq!(done.status, 0);
    stage.leaves_nothing();
}

#[test]
fn megabytes_come_back_from_a_container_as_they_went_in() {
    let Some(stage) = stage() else { return };
    let bytes = noise(usize::try_from(size(10, 100)).unwrap() << 20);
    let name = unique("echo");
    let line = [
        "run",
        "--rm",
        "--runtime",
        RUNTIME,
        image::BUSYBOX,
        &name,
        "cat",
    ];
    let done = stage.node.ctr_with_input("default", &line, &bytes).unwrap();
    assert_eq!(done.status, 0, "{}", done.error());
    assert_eq!(done.stdout.len(), bytes.len());
    assert!(done.stdout == bytes, "the bytes differ");
    stage.leaves_nothing();
}

#[test]
fn a_missing_program_is_an_error_at_once_that_names_it() {
    let Some(stage) = stage() else { return };
    let done = stage.run_image(image::BUSYBOX, &["/bin/no-such-program"]);
    assert_ne!(done.status, 0);
    let error = done.error();
    assert!(last_line(&error).contains("no-such-program"), "{error}");
    stage.leaves_nothing();
}

#[test]
fn a_killed_vmm_leaves_nothing() {
    let Some(stage) = stage() else { return };
    let done = kill_while_running(&stage, "orlop");
    assert_ne!(done, 0);
    stage.leaves_nothing();
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let Some(stage) = stage() else { return };
    let done = kill_while_running(&stage, "containerd-shim-orlop-v2");
    assert_ne!(done, 0);
    stage.leaves_nothing();
}

/// Runs a container that would go on, kills the process that runs `program` under it, and returns ctr's status.
fn kill_while_running(stage: &Stage, program: &str) -> u8 {
    let name = unique("killed");
    let script = "echo up; sleep 1000";
    let line = [
        "run",
        "--rm",
        "--runtime",
        RUNTIME,
        image::BUSYBOX,
        &name,
        "sh",
        "-c",
        script,
    ];
    let running = stage.node.ctr_start("default", &line, &[]).unwrap();
    wait_until_up(stage, &name);
    let victims = processes(program);
    assert_eq!(victims.len(), 1, "{program}: {victims:?}");
    for victim in victims {
        kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).unwrap();
    }
    let done = running.wait(Duration::from_secs(120)).unwrap();
    // `ctr run --rm` removes what it made, but not when its connection to the task broke; then it is the user's to do.
    if stage.has_container(&name) {
        let removed = stage
            .node
            .ctr("default", &["containers", "rm", &name])
            .unwrap();
        assert_eq!(removed.status, 0, "{}", removed.error());
    }
    done.status
}

fn wait_until_up(stage: &Stage, name: &str) {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let tasks = stage.node.ctr("default", &["tasks", "ls"]).unwrap();
        let running = tasks
            .output()
            .lines()
            .any(|line| line.starts_with(name) && line.contains("RUNNING"));
        if running {
            return;
        }
        assert_eq!(children::ended(), 0, "`ctr run` has ended");
        assert!(Instant::now() < end, "not up after 120 s");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Bytes without a pattern, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
