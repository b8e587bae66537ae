//! How fast a guest's devices are, side by side with QEMU's machines, and with other VMMs where they are named.
//!
//! A guest boots from a disk, does one thing after another ([`loads`]) and powers off. What it does by fio and iperf3 it says on its
//! console; what it does with streams the host measures ([`host`]).

pub mod host;
pub mod loads;
mod root;
mod said;

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_testbed::host::INSIDE_VARIABLE;
use orlop_testbed::progress::step;

use crate::contender::{Contender, Content, Devices, Guest, last_words, versions};
use crate::counts::{Counter, Exits};
use crate::figures::{Beside, Better, Comparison, Row, table};
use crate::plot;
use crate::workplace::Workplace;
use host::Tap;
use loads::{Effort, Kind, LOADS, Load, Unit};

/// The host's address on the tap, and the guest's.
pub const HOST: &str = "10.78.0.1";
pub const GUEST: &str = "10.78.0.2";
pub const TAP: &str = "orlop-bench";
pub const MEMORY_MIB: u64 = 256;
/// The size of the disk that is written to in MiB, in memory as all of this is.
const DISK: u32 = 1024;
/// How long everything in one guest may take where all is emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// The figures of one guest, by their loads' numbers.
type Run = Vec<(usize, f64)>;

/// Measures the devices of these kinds `runs` times for each VMM in turn, prints tables and draws a `plot` of the first.
///
/// # Errors
/// When a guest does not do what it is to do.
pub fn measure(runs: u32, kinds: &[Kind], plot: Option<&Path>) -> Result<()> {
    let workplace = Workplace::make()?;
    let wanted = |(_, load): &(usize, &Load)| kinds.is_empty() || kinds.contains(&load.kind);
    let loads = LOADS.iter().enumerate().filter(wanted);
    let numbers: Vec<usize> = loads.map(|(number, _)| number).collect();
    let effort = if env::var_os(INSIDE_VARIABLE).is_some() {
        Effort::EMULATED
    } else {
        Effort::FULL
    };
    let devices = prepare(&workplace, &loads::script(effort), &[])?;
    let tap = Tap::make(TAP)?;
    let iperf = host::iperf(&workplace.path("iperf"))?;
    let contenders = workplace.contenders()?.into_iter();
    let mut measured: Vec<_> = contenders.map(Measured::new).collect();
    for run in 1..=runs {
        for measured in &mut measured {
            let contender = &measured.contender;
            step(format!("run {run} of {runs}, {}", contender.name()));
            let counter = Counter::begin()?;
            let one = one(&workplace, contender, &devices, &numbers);
            measured.runs.push(one.with_context(|| contender.name())?);
            measured.exits = counter.end()?;
        }
    }
    drop((iperf, tap));
    let comparison = Comparison {
        about: "",
        names: names(&measured),
        beside: Beside::Lead,
        rows: rows(&numbers, &measured)?,
    };
    print!("{}", comparison.table());
    print!("{}", report_exits(&measured));
    print!("{}", versions(measured.iter().map(|it| &it.contender))?);
    if let Some(file) = plot {
        let title = "A guest's devices: how many times better Orlop's are";
        plot::draw(file, title, &[&comparison])?;
    }
    Ok(())
}

/// Makes the disks of guests whose process 1 is `script`, with the `further` programs of [`root::make`], and names the other devices.
///
/// # Errors
/// When a disk cannot be made.
pub fn prepare(workplace: &Workplace, script: &str, further: &[(&str, &Path)]) -> Result<Devices> {
    let devices = Devices {
        root: workplace.path("root"),
        disk: workplace.path("disk"),
        tap: TAP.to_owned(),
        vsock: workplace.path("vsock"),
        fs: workplace.path("fs"),
        order: String::new(),
    };
    let scratch = workplace.path("scratch");
    root::make(script, further, &scratch, &devices.root)?;
    host::fill(&devices.disk, DISK)?;
    Ok(devices)
}

/// What a VMM's guests did.
struct Measured {
    contender: Contender,
    runs: Vec<Run>,
    /// Those of the last guest's whole life.
    exits: Exits,
}

impl Measured {
    fn new(contender: Contender) -> Self {
        Self {
            contender,
            runs: Vec::new(),
            exits: Exits::default(),
        }
    }

    /// A load's figures, run by run; none of a device that the VMM does not have.
    fn figures(&self, number: usize, load: &Load) -> Result<Vec<f64>> {
        let figures = self.runs.iter().flatten();
        let of_load = figures.filter(|(of, _)| *of == number);
        let figures: Vec<_> = of_load.map(|(_, figure)| *figure).collect();
        let is_measured = !figures.is_empty() || !has(&self.contender, load.kind);
        ensure!(is_measured, "{}: nothing was measured", load.what);
        Ok(figures)
    }
}

/// Whether a VMM has devices of this kind.
fn has(contender: &Contender, kind: Kind) -> bool {
    !matches!((contender, kind), (Contender::Firecracker(_), Kind::Fs))
}

/// The command by which a guest ends its VM: Firecracker's has nothing that switches it off.
pub fn end(contender: &Contender) -> &'static str {
    match contender {
        Contender::Firecracker(_) => "reboot",
        _ => "poweroff",
    }
}

/// Starts a guest, which does everything once.
fn one(
    workplace: &Workplace,
    contender: &Contender,
    devices: &Devices,
    numbers: &[usize],
) -> Result<Run> {
    let does = |number: &&usize| {
        let load = LOADS.get(**number);
        load.is_some_and(|load| has(contender, load.kind))
    };
    let numbers: Vec<_> = numbers.iter().filter(does).copied().collect();
    let devices = Devices {
        order: loads::order(&numbers, end(contender)),
        ..devices.clone()
    };
    let console = workplace.path("console");
    let shared = tempfile::tempdir_in("/run")?;
    let fs = host::virtiofsd(shared.path(), &devices.fs, &workplace.path("virtiofsd"))?;
    // One that the last guest's VMM has left.
    let _ = fs::remove_file(&devices.vsock);
    let called = host::serve(contender, &devices, &numbers)?;
    let guest = Guest {
        kernel: workplace.kernel(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        content: Content::Devices(devices),
        needs_timer: true,
    };
    let ended = contender.start(&guest, &console)?.wait(LIMIT);
    ended.with_context(|| last_words(&console))?;
    drop(fs);
    let said = fs::read(&console)?;
    let mut figures =
        loads::figures(&String::from_utf8_lossy(&said)).with_context(|| last_words(&console))?;
    let host = called
        .join()
        .map_err(|_| anyhow::anyhow!("the host's part failed"))?;
    figures.extend(host?);
    for (number, figure) in &figures {
        if let Some(load) = LOADS.get(*number) {
            step(format!("{}: {figure:.1} {}", load.what, load.unit));
        }
    }
    Ok(figures)
}

fn names(measured: &[Measured]) -> Vec<&'static str> {
    measured.iter().map(|it| it.contender.name()).collect()
}

fn rows(numbers: &[usize], measured: &[Measured]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for number in numbers {
        let Some(load) = LOADS.get(*number) else {
            continue;
        };
        let runs = measured.iter().map(|it| it.figures(*number, load));
        rows.push(Row {
            what: format!("{}: {}, {}", load.kind, load.what, load.unit),
            better: match load.unit {
                Unit::Time => Better::Less,
                Unit::Bandwidth | Unit::Requests | Unit::Packets | Unit::Files => Better::More,
            },
            decimals: 0,
            runs: runs.collect::<Result<_>>()?,
        });
    }
    Ok(rows)
}

fn report_exits(measured: &[Measured]) -> String {
    let exits: Vec<_> = measured.iter().map(|it| &it.exits).collect();
    let rows = Exits::rows(&exits).into_iter().map(|(what, counts)| {
        let counts = counts.iter().map(u64::to_string);
        std::iter::once(what).chain(counts).collect::<Vec<_>>()
    });
    let mut head = vec!["a guest's life, the last"];
    head.extend(names(measured));
    table(&head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_is_more_of_what_is_wanted() {
        let program = std::path::PathBuf::from;
        let measured = |contender, figure: f64| Measured {
            runs: vec![vec![(0, figure), (9, figure), (13, figure)]],
            ..Measured::new(contender)
        };
        let mut other = measured(Contender::Firecracker(program("f")), 40.0);
        // It has no shared directories.
        other.runs[0].pop();
        let measured = [
            measured(Contender::Orlop(program("o")), 20.0),
            measured(Contender::CloudHypervisor(program("c")), 10.0),
            other,
        ];
        let rows = rows(&[0, 9, 13], &measured).unwrap();
        let leads: Vec<_> = rows.iter().map(Row::leads).collect();
        assert_eq!(
            leads,
            [
                [Some(2.0), Some(0.5)],
                [Some(0.5), Some(2.0)],
                [Some(2.0), None],
            ]
        );
    }
}
