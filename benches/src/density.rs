//! What many VMs on one host cost: how long as many as are started at once take until all of them have booted, and what each holds when
//! all are idle. What is shared between them is counted once.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use orlop_testbed::progress::step;

use crate::contender::{Contender, Vmm, versions};
use crate::counts::Counter;
use crate::figures::{Beside, Better, Comparison, Row};
use crate::held::share_of_memory;
use crate::plot;
use crate::start::Stage;
use crate::trace::Marks;

/// How many VMs there are at once.
const CROWDS: [usize; 3] = [1, 4, 16];
/// How long a crowd may take where everything is emulated.
const LIMIT: Duration = Duration::from_secs(150);
/// How long VMs are left alone before they are looked at. A guest does things by itself for some seconds after its boot: it tells what of its memory is free.
const SETTLE: Duration = Duration::from_secs(10);
/// How long what the processor does for idle VMs is watched.
const WATCH: Duration = Duration::from_secs(2);

/// VMs that were started at once.
#[derive(Clone, Copy)]
struct Crowd {
    /// Seconds from the first program's execution until the last guest's process 1.
    booted: f64,
    /// Seconds of the processor that each VM has taken until then.
    taken: f64,
    /// Bytes of each VM: its process's memory, RAM included, divided among those that share it (PSS).
    memory: f64,
    /// Seconds of the processor that an idle VM takes in a second.
    idle: f64,
    /// Exits of an idle guest in a second.
    exits: f64,
}

/// Has crowds of each VMM in turn, `runs` times, prints a table and draws a `plot` of it.
///
/// # Errors
/// When a VMM does not run, or the kernel's traces cannot be had.
pub fn measure(runs: u32, plot: Option<&Path>) -> Result<()> {
    let stage = Stage::set()?;
    let contenders = stage.workplace().contenders()?;
    let mut crowds = vec![CROWDS.map(|_| Vec::new()); contenders.len()];
    let mut marks = Marks::begin()?;
    for run in 1..=runs {
        for (contender, crowds) in contenders.iter().zip(&mut crowds) {
            for (size, crowds) in CROWDS.into_iter().zip(crowds) {
                let crowd = one(&stage, contender, size, &mut marks)
                    .with_context(|| stage.failure(contender));
                let about = format!("run {run} of {runs}, {size} of {}", contender.name());
                match crowd {
                    Ok(crowd) => {
                        let booted = crowd.booted * 1000.0;
                        step(format!("{about}: {booted:.1} ms until all have booted"));
                        crowds.push(crowd);
                    }
                    // An emulated host may hang one of many guests. What the others have is worth the table nevertheless.
                    Err(error) => step(format!("{about}: left out: {error:#}")),
                }
            }
        }
    }
    let comparison = Comparison {
        about: "",
        names: contenders.iter().map(Contender::name).collect(),
        beside: Beside::Ratio,
        rows: rows(&crowds),
    };
    print!("{}", comparison.table());
    print!("{}", versions(&contenders)?);
    if let Some(file) = plot {
        plot::draw(
            file,
            "Many VMs: how many times less Orlop's cost",
            &[&comparison],
        )?;
    }
    Ok(())
}

fn one(stage: &Stage, contender: &Contender, size: usize, marks: &mut Marks) -> Result<Crowd> {
    let guest = stage.lasting_guest();
    let vms = (0..size)
        .map(|_| contender.start(&guest, stage.console()))
        .collect::<Result<Vec<_>>>()?;
    let booted = marks.of(vms.first().context("no VM")?.id(), size, LIMIT)?;
    let taken = processor(&vms)?;
    thread::sleep(SETTLE);
    let memory = vms
        .iter()
        .map(|vm| share_of_memory(vm.id()))
        .sum::<Result<u64>>()?;
    let before = processor(&vms)?;
    let counter = Counter::begin()?;
    thread::sleep(WATCH);
    let idle = processor(&vms)? - before;
    let exits = counter.end()?.all;
    let size = size as f64;
    Ok(Crowd {
        booted,
        taken: taken / size,
        memory: memory as f64 / size,
        idle: idle / size / WATCH.as_secs_f64(),
        exits: exits.values().sum::<u64>() as f64 / size / WATCH.as_secs_f64(),
    })
}

/// Seconds of the processor that these have had so far, by the scheduler's account (the first field of `schedstat`), thread by thread.
fn processor(vms: &[Vmm]) -> Result<f64> {
    let mut nanoseconds = 0;
    for vm in vms {
        for thread in fs::read_dir(format!("/proc/{}/task", vm.id()))? {
            let account = fs::read_to_string(thread?.path().join("schedstat"))?;
            let running = account.split_whitespace().next().unwrap_or_default();
            nanoseconds += running.parse::<u64>().context("no schedstat")?;
        }
    }
    Ok(nanoseconds as f64 / 1e9)
}

fn rows(crowds: &[[Vec<Crowd>; CROWDS.len()]]) -> Vec<Row> {
    type Figure = (&'static str, usize, fn(&Crowd) -> f64);
    let figures: [Figure; 5] = [
        ("all have booted, ms", 0, |crowd| crowd.booted * 1000.0),
        ("processor of each until then, ms", 0, |crowd| {
            crowd.taken * 1000.0
        }),
        ("memory of each, MiB", 1, |crowd| {
            crowd.memory / f64::from(1 << 20)
        }),
        ("processor of each when idle, ms a second", 2, |crowd| {
            crowd.idle * 1000.0
        }),
        ("exits of each when idle, a second", 0, |crowd| crowd.exits),
    ];
    let mut rows = Vec::new();
    for (what, decimals, figure) in figures {
        for (at, size) in CROWDS.into_iter().enumerate() {
            let of_size = crowds.iter().map(|crowds| {
                let crowds = crowds.get(at).into_iter().flatten();
                crowds.map(figure).collect()
            });
            rows.push(Row {
                what: format!("{size} at once: {what}"),
                better: Better::Less,
                decimals,
                runs: of_size.collect(),
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_row_for_each_size() {
        let crowds = |scale: f64| {
            CROWDS.map(|size| {
                vec![Crowd {
                    booted: 0.1 * scale * size as f64,
                    memory: 64e6 * scale,
                    taken: 0.1 * scale,
                    idle: 0.001 * scale,
                    exits: 20.0 * scale,
                }]
            })
        };
        let rows = rows(&[crowds(1.0), crowds(2.0)]);
        assert_eq!(rows.len(), 15);
        let last = rows.last().unwrap();
        assert_eq!(last.what, "16 at once: exits of each when idle, a second");
        assert_eq!(last.figures(), [Some(20.0), Some(40.0)]);
        assert!(rows.iter().all(|row| row.leads() == [Some(2.0)]));
    }

    #[test]
    fn what_never_booted_has_no_figures() {
        let rows = rows(&[CROWDS.map(|_| Vec::new())]);
        assert!(rows.iter().all(|row| row.figures() == [None]));
    }
}
