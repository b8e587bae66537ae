//! How fast a guest's devices are, side by side with QEMU's machines.
//!
//! A guest boots from a disk, does one thing after another ([`loads`]) and powers off. What it does by fio and iperf3 it says on its
//! console; what it does with streams the host measures ([`host`]).

mod host;
pub mod loads;
mod root;

use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::time::Duration;

use anyhow::{Context, Result};
use orlop_testbed::host::INSIDE_VARIABLE;
use orlop_testbed::progress::step;

use crate::contender::{Contender, Content, Devices, Guest, last_words};
use crate::counts::{Counter, Exits};
use crate::figures::{median, table};
use crate::workplace::Workplace;
use host::Tap;
use loads::{Effort, Kind, LOADS, Load, Unit};

/// The host's address on the tap, and the guest's.
const HOST: &str = "10.78.0.1";
const GUEST: &str = "10.78.0.2";
const TAP: &str = "orlop-bench";
const MEMORY_MIB: u64 = 256;
/// The size of the disk that is written to, in memory as all of this is.
const DISK: u64 = 256 << 20;
/// How long everything in one guest may take where all is emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// The figures of one guest, by their loads' numbers.
type Run = Vec<(usize, f64)>;

/// Measures the devices of these kinds `runs` times for each VMM in turn, and prints a table.
///
/// # Errors
/// When a guest does not do what it is to do.
pub fn measure(runs: u32, kinds: &[Kind]) -> Result<()> {
    let workplace = Workplace::make()?;
    let wanted = |(_, load): &(usize, &Load)| kinds.is_empty() || kinds.contains(&load.kind);
    let loads = LOADS.iter().enumerate().filter(wanted);
    let numbers: Vec<usize> = loads.map(|(number, _)| number).collect();
    let devices = Devices {
        root: workplace.path("root"),
        disk: workplace.path("disk"),
        tap: TAP.to_owned(),
        vsock: workplace.path("vsock"),
        fs: workplace.path("fs"),
    };
    let effort = if env::var_os(INSIDE_VARIABLE).is_some() {
        Effort::EMULATED
    } else {
        Effort::FULL
    };
    root::make(
        &loads::script(&numbers, effort),
        &workplace.path("scratch"),
        &devices.root,
    )?;
    // Filled, for what nobody has written yet is read quicker, and written slower.
    let mut disk = File::create(&devices.disk)?;
    io::copy(&mut io::repeat(1).take(DISK), &mut disk)?;
    let guest = Guest {
        kernel: workplace.kernel(),
        memory_mib: MEMORY_MIB,
        content: Content::Devices(devices),
    };
    let contenders = [
        Contender::Orlop(workplace.orlop()),
        Contender::QemuMicrovm(workplace.emulator()),
        Contender::QemuQ35(workplace.emulator()),
    ];
    let tap = Tap::make(TAP)?;
    let iperf = host::iperf(&workplace.path("iperf"))?;
    let mut measured = contenders.each_ref().map(|_| Vec::new());
    let mut exits = contenders.each_ref().map(|_| Exits::default());
    for run in 1..=runs {
        for ((contender, measured), exits) in contenders.iter().zip(&mut measured).zip(&mut exits) {
            step(format!("run {run} of {runs}, {}", contender.name()));
            let counter = Counter::begin()?;
            let one = one(&workplace, contender, &guest, &numbers);
            measured.push(one.with_context(|| contender.name())?);
            *exits = counter.end()?;
        }
    }
    drop((iperf, tap));
    print!("{}", report(&numbers, &measured)?);
    let rows = Exits::rows(exits.each_ref());
    let rows = rows.into_iter().map(|(what, counts)| {
        let [ours, microvm, q35] = counts.map(|count| count.to_string());
        [what, ours, microvm, q35]
    });
    let head = [
        "a guest's life, the last",
        "Orlop",
        "QEMU microvm",
        "QEMU q35",
    ];
    print!("{}", table(head, rows));
    Ok(())
}

/// Starts a guest, which does everything once.
fn one(
    workplace: &Workplace,
    contender: &Contender,
    guest: &Guest,
    numbers: &[usize],
) -> Result<Run> {
    let Content::Devices(devices) = &guest.content else {
        anyhow::bail!("a guest without devices");
    };
    let console = workplace.path("console");
    let shared = tempfile::tempdir_in("/run")?;
    let fs = host::virtiofsd(shared.path(), &devices.fs, &workplace.path("virtiofsd"))?;
    let called = host::serve(contender, devices, numbers)?;
    let ended = contender.start(guest, &console)?.wait(LIMIT);
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

fn report(numbers: &[usize], measured: &[Vec<Run>; 3]) -> Result<String> {
    let mut rows = Vec::new();
    for number in numbers {
        let Some(load) = LOADS.get(*number) else {
            continue;
        };
        let mut medians = [0.0; 3];
        for (runs, median_of) in measured.iter().zip(&mut medians) {
            let figures = runs.iter().flatten();
            let of_load = figures.filter(|(of, _)| of == number);
            *median_of = median(of_load.map(|(_, figure)| *figure)).context(load.what)?;
        }
        let [ours, microvm, q35] = medians;
        // More is better, so that 1.20 is a lead in all rows.
        let lead = |theirs: f64| match load.unit {
            Unit::Time => theirs / ours,
            Unit::Bandwidth | Unit::Requests => ours / theirs,
        };
        rows.push([
            format!("{}: {}, {}", load.kind, load.what, load.unit),
            format!("{ours:.0}"),
            format!("{microvm:.0}"),
            format!("{:.2}", lead(microvm)),
            format!("{q35:.0}"),
            format!("{:.2}", lead(q35)),
        ]);
    }
    let head = ["", "Orlop", "QEMU microvm", "lead", "QEMU q35", "lead"];
    Ok(table(head, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_is_more_of_what_is_wanted() {
        let runs = |figure: f64| vec![vec![(0, figure), (8, figure)]];
        let report = report(&[0, 8], &[runs(20.0), runs(10.0), runs(40.0)]).unwrap();
        let lines: Vec<_> = report.lines().skip(3).collect();
        assert!(
            lines[0].ends_with("| 20 | 10 | 2.00 | 40 | 0.50 |"),
            "{report}"
        );
        assert!(
            lines[1].ends_with("| 20 | 10 | 0.50 | 40 | 2.00 |"),
            "{report}"
        );
    }
}
