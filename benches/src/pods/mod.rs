//! What pods take and hold: the calls of a pod's life one by one, many pods started at once, and the memory of those that do nothing. Orlop beside
//! the runtimes of containers that are there, and those whose shims are named in the environment, each behind a handler of one and the same containerd.

mod memory;
mod syslog;

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use orlop_testbed::containerd::cri::{Container, Cri, Pod};
use orlop_testbed::containerd::{CRUN_HANDLER, HANDLER, Node, Release, other_handlers};
use orlop_testbed::progress::step;
use orlop_testbed::setup::build;

use crate::contender;
use crate::figures::{Beside, Better, Comparison, Row};
use memory::Memory;
use syslog::Syslog;

/// The handler of runc.
const RUNC: &str = "runc";
/// How many pods there are at once.
const CROWDS: [usize; 2] = [1, 10];
/// How long pods are left alone before they are looked at.
const SETTLE: Duration = Duration::from_secs(10);
/// What a container does that does nothing.
const SLEEP: &[&str] = &["sleep", "1000000"];

/// The calls of a pod's life in their order, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    sandbox: f64,
    create: f64,
    start: f64,
    exec: f64,
    remove: f64,
}

/// Pods that were started at once.
#[derive(Clone, Copy, Debug, Default)]
struct Crowd {
    /// Seconds until the last pod's container ran.
    running: f64,
    /// What each of them holds.
    memory: Memory,
}

/// What was seen of one handler.
struct Seen {
    name: &'static str,
    lives: Vec<Life>,
    crowds: [Vec<Crowd>; CROWDS.len()],
}

/// Has pods of each handler in turn, `runs` times, and prints a table.
///
/// # Errors
/// When Orlop's pods do not run. A handler whose pods do not run here is left out, and that is said.
pub fn measure(runs: u32) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in("/run")?;
    let _syslog = Syslog::stand_in()?;
    let (node, _daemon) = Node::start(directory.path())?;
    let cri = Cri::connect(&node)?;
    let mut all = Vec::new();
    let others = other_handlers();
    let names = others.iter().map(|other| other.name);
    for name in [HANDLER, RUNC, CRUN_HANDLER].into_iter().chain(names) {
        step(format!("a pod of {name} to warm up"));
        match life(&cri, name) {
            Ok(_) => all.push(Seen {
                name,
                lives: Vec::new(),
                crowds: Default::default(),
            }),
            Err(error) if name == HANDLER => return Err(error),
            Err(error) => step(format!("{name} is left out: {error:#}")),
        }
    }
    for run in 1..=runs {
        for seen in &mut all {
            let about = format!("run {run} of {runs}, {}", seen.name);
            seen.lives
                .push(life(&cri, seen.name).context(about.clone())?);
            for (size, crowds) in CROWDS.into_iter().zip(&mut seen.crowds) {
                let crowd = crowd(&cri, seen.name, size).context(about.clone())?;
                step(format!(
                    "{about}: {size} at once ran after {:.2} s",
                    crowd.running
                ));
                crowds.push(crowd);
            }
        }
    }
    let comparison = Comparison {
        about: "",
        names: all.iter().map(|seen| seen.name).collect(),
        beside: Beside::Ratio,
        rows: rows(&all),
    };
    print!("{}", comparison.table());
    print!("{}", versions(all.iter().map(|seen| seen.name))?);
    Ok(())
}

/// What was compared: the host's kernel, containerd, and the programs behind the handlers.
fn versions(handlers: impl Iterator<Item = &'static str>) -> Result<String> {
    let mut text = contender::versions([])?;
    let containerd = Release::of_stories().programs().join("containerd");
    let orlop = build::programs_directory().join("orlop");
    let others = other_handlers();
    let programs = handlers.map(|name| match name {
        HANDLER => (orlop.clone(), "--version"),
        name => match others.iter().find(|other| other.name == name) {
            // What is asked of a shim in the way that all have in common.
            Some(other) => (other.program.clone(), "-v"),
            None => (name.into(), "--version"),
        },
    });
    for (program, question) in [(containerd, "--version")].into_iter().chain(programs) {
        let output = Command::new(&program).arg(question).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<_> = said.lines().take(2).map(str::trim).collect();
        text.push_str(&format!("{}\n", lines.join(" ")));
    }
    Ok(text)
}

/// One pod with one container, from its beginning to its end.
fn life(cri: &Cri, handler: &'static str) -> Result<Life> {
    let mut clock = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        (now - std::mem::replace(&mut clock, now)).as_secs_f64()
    };
    let pod = cri.run_pod_with("life", handler)?;
    let sandbox = lap();
    let container = cri.create(&pod, &Container::busybox("main", SLEEP))?;
    let create = lap();
    cri.start(&container)?;
    let start = lap();
    let done = cri.exec(&container, &["true"])?;
    let exec = lap();
    ensure!(
        done.exit_code == 0,
        "`true` fails in a container of {handler}"
    );
    cri.remove_pod(&pod)?;
    Ok(Life {
        sandbox,
        create,
        start,
        exec,
        remove: lap(),
    })
}

/// `size` pods at once, and what each of them holds when all are idle.
fn crowd(cri: &Cri, handler: &'static str, size: usize) -> Result<Crowd> {
    let began = Instant::now();
    let pods = thread::scope(|scope| {
        let pods: Vec<_> = (0..size)
            .map(|number| scope.spawn(move || running(cri, handler, &format!("crowd-{number}"))))
            .collect();
        pods.into_iter()
            .map(|pod| pod.join().map_err(|_| anyhow!("a pod's thread ended"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let running = began.elapsed().as_secs_f64();
    thread::sleep(SETTLE);
    let held = pods.iter().map(Memory::of).collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        cri.remove_pod(pod)?;
    }
    Ok(Crowd {
        running,
        memory: Memory::each(&held),
    })
}

fn running(cri: &Cri, handler: &str, name: &str) -> Result<Pod> {
    let pod = cri.run_pod_with(name, handler)?;
    cri.run(&pod, &Container::busybox("main", SLEEP))?;
    Ok(pod)
}

fn rows(all: &[Seen]) -> Vec<Row> {
    type OfLife = (&'static str, fn(&Life) -> f64);
    let calls: [OfLife; 6] = [
        ("the sandbox runs, ms", |life| life.sandbox),
        ("the first container is created, ms", |life| life.create),
        ("it is started, ms", |life| life.start),
        ("so all until it runs, ms", |life| {
            life.sandbox + life.create + life.start
        }),
        ("a command in it (exec), ms", |life| life.exec),
        ("the pod is stopped and removed, ms", |life| life.remove),
    ];
    let row = |what: String, decimals, runs: &dyn Fn(&Seen) -> Vec<f64>| Row {
        what,
        better: Better::Less,
        decimals,
        runs: all.iter().map(runs).collect(),
    };
    let mut rows: Vec<_> = calls
        .into_iter()
        .map(|(what, of)| {
            let runs = |seen: &Seen| seen.lives.iter().map(|it| of(it) * 1000.0).collect();
            row(what.to_owned(), 0, &runs)
        })
        .collect();
    type OfCrowd = (&'static str, usize, fn(&Crowd) -> f64);
    let of_crowds: [OfCrowd; 4] = [
        ("all run, ms", 0, |crowd| crowd.running * 1000.0),
        ("memory of each (PSS), MiB", 1, |crowd| {
            mebibytes(crowd.memory.share)
        }),
        ("of it beyond a guest's RAM, MiB", 1, |crowd| {
            mebibytes(crowd.memory.beyond_ram)
        }),
        ("its control group, MiB", 1, |crowd| {
            mebibytes(crowd.memory.charged)
        }),
    ];
    for (what, decimals, of) in of_crowds {
        for (at, size) in CROWDS.into_iter().enumerate() {
            let runs = |seen: &Seen| {
                let crowds = seen.crowds.get(at).into_iter().flatten();
                crowds.map(of).collect()
            };
            rows.push(row(format!("{size} at once: {what}"), decimals, &runs));
        }
    }
    rows
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_row_for_each_call_and_for_each_size() {
        let seen = |name, scale: f64| Seen {
            name,
            lives: vec![Life {
                sandbox: 0.1 * scale,
                create: 0.2 * scale,
                start: 0.3 * scale,
                ..Life::default()
            }],
            crowds: CROWDS.map(|size| {
                vec![Crowd {
                    running: scale * size as f64,
                    memory: Memory::default(),
                }]
            }),
        };
        let rows = rows(&[seen("a", 1.0), seen("b", 2.0)]);
        assert_eq!(rows.len(), 6 + 4 * CROWDS.len());
        let total = &rows[3];
        assert_eq!(total.what, "so all until it runs, ms");
        assert!((total.figures()[0].unwrap() - 600.0).abs() < 1e-6);
        assert_eq!(total.leads(), [Some(2.0)]);
        assert_eq!(rows[7].what, "10 at once: all run, ms");
    }
}
