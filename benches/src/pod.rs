//! Where the time from `ctr run` to a container's first output goes.
//!
//! The shim logs a line with the time at each phase, and containerd passes its lines on to its own log; what happens inside until
//! the agent serves is asked of the agent, whose clock starts with the guest's kernel. In a virtual host the figures are good for
//! ratios within one run, not for comparison with other machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use orlop_proto::agent::CONTROL_PORT;
use orlop_proto::agent::v1::InfoRequest;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::connect;
use orlop_testbed::containerd::{Node, RUNTIME};
use orlop_testbed::image;
use orlop_testbed::progress::step;

use crate::figures::{self, median};

/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// The phases in order: what it is called in the shim's log, and what has happened when it is reached.
const PHASES: &[(&str, &str)] = &[
    ("shim-started", "ctr and containerd, until the shim serves"),
    (
        "create-received",
        "containerd, until the shim is asked for a container",
    ),
    ("virtiofsd-started", "mounts, and virtiofsd listens"),
    ("vmm-started", "the VMM is started"),
    (VMM, "the VMM, until the guest's kernel counts time"),
    (
        KERNEL,
        "the guest's kernel, until the agent's first instruction",
    ),
    (AGENT, "the agent, until it serves"),
    ("created", "the container is made in the guest"),
    ("started", "the container is started"),
    (
        "first-output",
        "the command, until its first output is at the shim",
    ),
];
const VMM: &str = "vmm";
const KERNEL: &str = "kernel";
const AGENT: &str = "agent";

/// Seconds by phase.
type Run = BTreeMap<&'static str, f64>;

/// Measures on this machine, which has KVM, and prints a table.
///
/// # Errors
/// When a container does not run, or a phase is not logged.
pub fn measure(runs: u32) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in("/run")?;
    let (node, _daemon) = Node::start(directory.path())?;
    // The first run fills caches; it is what a first user sees, but not what repeats.
    step("a run to warm up");
    one(&node, "warm")?;
    let mut measured = Vec::new();
    for number in 1..=runs {
        step(format!("run {number} of {runs}"));
        measured.push(one(&node, &format!("bench-{number}"))?);
    }
    print!("{}", table(&measured)?);
    Ok(())
}

fn one(node: &Node, name: &str) -> Result<Run> {
    // The command goes on for a while so that the agent can be asked.
    let script = "echo first; sleep 3";
    let line = [
        "run",
        "--rm",
        "--runtime",
        RUNTIME,
        image::BUSYBOX,
        name,
        "sh",
        "-c",
        script,
    ];
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let running = node.ctr_start("default", &line, &[])?;
    let inside = ask_agent(node);
    let done = running.wait(RUN_LIMIT)?;
    if done.status != 0 {
        bail!("ctr run failed: {}", done.error());
    }
    let (init, serving) = inside?;
    let log = fs::read_to_string(node.log())?;
    let at = |phase| time_of(&log, phase, name);
    let mut run = Run::new();
    let mut before = started;
    for (phase, _) in PHASES {
        match *phase {
            VMM => {
                let (up, ready) = (at("vmm-started")?, at("agent-ready")?);
                run.insert(VMM, ready - up - serving);
                run.insert(KERNEL, init);
                run.insert(AGENT, serving - init);
                before = ready;
            }
            KERNEL | AGENT => {}
            phase => {
                let now = at(phase)?;
                run.insert(phase, now - before);
                before = now;
            }
        }
    }
    Ok(run)
}

/// When the agent's first instruction ran and when it served, in seconds since the guest's kernel began to count.
fn ask_agent(node: &Node) -> Result<(f64, f64)> {
    let end = Instant::now() + RUN_LIMIT;
    let runtime = tokio::runtime::Runtime::new()?;
    loop {
        if let Some(socket) = find(&node.orlop_state(), "vsock.sock") {
            let answer = runtime.block_on(async {
                let channel = connect::vsock(socket, CONTROL_PORT).await.ok()?;
                AgentClient::new(channel).info(InfoRequest {}).await.ok()
            });
            if let Some(answer) = answer {
                let phases = answer.into_inner().phases;
                let at = |name: &str| {
                    phases
                        .iter()
                        .find(|phase| phase.name == name)
                        .map(|phase| Duration::from_nanos(phase.boottime_ns).as_secs_f64())
                        .with_context(|| format!("the agent does not tell of its phase {name}"))
                };
                return Ok((at("init")?, at("serving")?));
            }
        }
        if Instant::now() > end {
            bail!("no agent answers after {} s", RUN_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if entry.file_name() == name {
            Some(path)
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&path, name)
        } else {
            None
        }
    })
}

/// The time of a phase in containerd's log, where the shim's lines are between containerd's own.
fn time_of(log: &str, phase: &str, name: &str) -> Result<f64> {
    log.lines()
        .filter(|line| line.contains(&format!(" phase {phase} ")))
        .find(|line| {
            line.split_whitespace()
                .filter_map(|word| word.strip_prefix("container="))
                .any(|container| container.split('/').next() == Some(name))
        })
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("the shim's log has no phase {phase} of {name}"))
}

fn table(runs: &[Run]) -> Result<String> {
    let total = median(runs.iter().map(|run| run.values().sum()))?;
    let mut rows = PHASES
        .iter()
        .map(|(phase, what)| {
            let seconds = median(runs.iter().filter_map(|run| run.get(phase)).copied())?;
            let (ms, share) = (seconds * 1000.0, seconds / total * 100.0);
            Ok([
                (*what).to_owned(),
                format!("{ms:.0}"),
                format!("{share:.0} %"),
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    rows.push([
        "all".into(),
        format!("{:.0}", total * 1000.0),
        String::new(),
    ]);
    let median_of = format!("median of {}, ms", runs.len());
    Ok(figures::table(
        &["until", median_of.as_str(), "share"],
        rows,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_between_containerds_lines() {
        let log = "time=\"2026\" level=info msg=x\n\
                   12.500000 INFO orlop a phase created container=a\n\
                   13.000000 INFO orlop ab phase created container=ab\n";
        assert_eq!(time_of(log, "created", "a").unwrap(), 12.5);
        assert_eq!(time_of(log, "created", "ab").unwrap(), 13.0);
        assert!(time_of(log, "started", "a").is_err());
    }
}
