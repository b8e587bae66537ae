//! How fast a VM starts and what it costs, side by side with QEMU's microvm machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use orlop_testbed::cpio::{Archive, DIRECTORY, PROGRAM};
use orlop_testbed::progress::step;
use orlop_testbed::setup::build;

use crate::budgets::{Budgets, Costs};
use crate::contender::{Contender, Content, Guest, last_words};
use crate::counts::{Counts, Exits};
use crate::figures::{median, table};
use crate::memory;
use crate::trace::Trace;
use crate::workplace::Workplace;

/// The guest's RAM, that of Firecracker's promises.
const MEMORY_MIB: u64 = 128;
/// How long one start may take where everything is emulated.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a guest that has reached user space is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// One start.
#[derive(Clone, Copy)]
struct Start {
    /// Seconds from the program's execution to the first entry of the guest.
    to_first_entry: f64,
    /// Seconds from the program's execution to the guest's process 1.
    to_init: f64,
    /// Bytes.
    beyond_ram: u64,
}

impl Start {
    fn beyond_ram_mib(&self) -> f64 {
        self.beyond_ram as f64 / f64::from(1 << 20)
    }
}

/// Measures `runs` starts of each VMM in turn and prints a table.
///
/// # Errors
/// When a VMM does not run, or the kernel's traces cannot be had.
pub fn measure(runs: u32) -> Result<()> {
    let stage = Stage::set()?;
    let contenders = [
        Contender::Orlop(stage.workplace.orlop()),
        Contender::QemuMicrovm(stage.workplace.emulator()),
    ];
    let starts = stage.starts(&contenders, runs)?;
    let counts = stage.counts(&contenders)?;
    let [ours, theirs] = &starts;
    print!("{}", report(ours, theirs)?);
    let [ours, theirs] = &counts;
    print!("{}", report_counts(ours, theirs));
    Ok(())
}

/// Measures `runs` starts of Orlop, and sees whether they keep to their budgets.
///
/// # Errors
/// When one is exceeded; otherwise as [`measure`].
pub fn check(runs: u32) -> Result<()> {
    let budget = Budgets::read()?.start;
    let stage = Stage::set()?;
    let orlop = [Contender::Orlop(stage.workplace.orlop())];
    let [starts] = stage.starts(&orlop, runs)?;
    let [counts] = stage.counts(&orlop)?;
    let least = |figure: fn(&Start) -> f64| starts.iter().map(figure).fold(f64::INFINITY, f64::min);
    let costs = Costs {
        first_instruction_ms: least(|start| start.to_first_entry * 1000.0),
        kernel_ms: least(|start| (start.to_init - start.to_first_entry) * 1000.0),
        beyond_ram_mib: least(Start::beyond_ram_mib),
        system_calls: counts.system_calls as f64,
        exits: counts.exits.all.values().sum::<u64>() as f64,
        exits_to_user_space: counts.exits.to_user_space.values().sum::<u64>() as f64,
    };
    costs.keep_to(&budget)
}

/// What is started, and where.
struct Stage {
    workplace: Workplace,
    guest: Guest,
    console: PathBuf,
}

impl Stage {
    fn set() -> Result<Self> {
        let workplace = Workplace::make()?;
        let initramfs = workplace.path("initramfs");
        let mark = build::programs_directory().join("orlop-boot-mark");
        fs::write(&initramfs, archive(&mark)?)?;
        huge_pages_on_advice();
        Ok(Self {
            guest: Guest {
                kernel: workplace.kernel(),
                memory_mib: MEMORY_MIB,
                content: Content::Initramfs(initramfs),
            },
            console: workplace.path("console"),
            workplace,
        })
    }

    /// `runs` starts of each, in turn.
    fn starts<const N: usize>(
        &self,
        contenders: &[Contender; N],
        runs: u32,
    ) -> Result<[Vec<Start>; N]> {
        let mut starts = contenders.each_ref().map(|_| Vec::new());
        for run in 0..=runs {
            for (contender, starts) in contenders.iter().zip(&mut starts) {
                let start = one(contender, &self.guest, &self.console)
                    .with_context(|| self.failure(contender))?;
                // The first one fills caches.
                if run > 0 {
                    step(format!(
                        "run {run} of {runs}, {}: {:.1} ms to the first instruction, {:.1} ms to init",
                        contender.name(),
                        start.to_first_entry * 1000.0,
                        start.to_init * 1000.0
                    ));
                    starts.push(start);
                }
            }
        }
        Ok(starts)
    }

    /// What a start of each costs in exits.
    fn counts<const N: usize>(&self, contenders: &[Contender; N]) -> Result<[Counts; N]> {
        let mut counts = [const { None }; N];
        for (contender, counts) in contenders.iter().zip(&mut counts) {
            let counted = Counts::of(contender, &self.guest, &self.console);
            *counts = Some(counted.with_context(|| self.failure(contender))?);
        }
        Ok(counts.map(Option::unwrap_or_default))
    }

    fn failure(&self, contender: &Contender) -> String {
        format!("{}: {}", contender.name(), last_words(&self.console))
    }
}

fn one(contender: &Contender, guest: &Guest, console: &Path) -> Result<Start> {
    let trace = Trace::begin()?;
    let vmm = contender.start(guest, console)?;
    let moments = trace.finish(vmm.id(), LIMIT)?;
    thread::sleep(SETTLE);
    Ok(Start {
        to_first_entry: moments.first_entry - moments.exec,
        to_init: moments.init - moments.exec,
        beyond_ram: memory::beyond_ram(vmm.id(), guest.memory_mib << 20)?,
    })
}

/// An initramfs whose process 1 is `init`.
fn archive(init: &Path) -> Result<Vec<u8>> {
    let init = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY, &[])?;
    archive.add("init", PROGRAM, &init)?;
    Ok(archive.finish()?)
}

/// Huge pages for those that ask, so that no VMM's own heap grows by 2 MiB at a touch.
fn huge_pages_on_advice() {
    let switch = "/sys/kernel/mm/transparent_hugepage/enabled";
    if let Err(error) = fs::write(switch, "madvise") {
        step(format!("huge pages stay as they are: {switch}: {error}"));
    }
}

fn report(ours: &[Start], theirs: &[Start]) -> Result<String> {
    type Figure = (&'static str, fn(&Start) -> f64);
    let figures: [Figure; 3] = [
        ("exec to the first guest instruction, ms", |start| {
            start.to_first_entry * 1000.0
        }),
        ("exec to init, ms", |start| start.to_init * 1000.0),
        (
            "private memory beyond the guest's RAM, MiB",
            Start::beyond_ram_mib,
        ),
    ];
    let rows = figures
        .into_iter()
        .map(|(what, figure)| {
            let of = |starts: &[Start]| median(starts.iter().map(figure));
            let (our, their) = (of(ours)?, of(theirs)?);
            Ok([
                format!("{what}, median of {}", ours.len()),
                format!("{our:.1}"),
                format!("{their:.1}"),
                format!("{:.2}", our / their),
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(table(["", "Orlop", "QEMU microvm", "ratio"], rows))
}

/// The counts of one start, which are the same each time but for interrupts of the host's.
fn report_counts(ours: &Counts, theirs: &Counts) -> String {
    let calls = (
        "system calls before the first guest instruction".to_owned(),
        [ours.system_calls, theirs.system_calls],
    );
    let exits = Exits::rows([&ours.exits, &theirs.exits]);
    let rows = std::iter::once(calls).chain(exits);
    table(
        ["until init", "Orlop", "QEMU microvm", "ratio"],
        rows.map(|(what, [ours, theirs])| {
            let ratio = match theirs {
                0 => "-".to_owned(),
                _ => format!("{:.2}", ours as f64 / theirs as f64),
            };
            [what, ours.to_string(), theirs.to_string(), ratio]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_medians_and_their_ratios() {
        let start = |scale: f64| Start {
            to_first_entry: 0.01 * scale,
            to_init: 0.1 * scale,
            beyond_ram: (2 << 20) * scale as u64,
        };
        let ours = [start(1.0), start(1.0), start(50.0)];
        let theirs = [start(4.0); 3];
        let report = report(&ours, &theirs).unwrap();
        assert!(
            report.contains("| exec to init, ms, median of 3 | 100.0 | 400.0 | 0.25 |"),
            "{report}"
        );
        assert!(report.contains("| 2.0 | 8.0 | 0.25 |"), "{report}");
    }
}
