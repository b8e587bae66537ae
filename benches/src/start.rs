//! How fast a VM starts and what it costs, side by side with QEMU's microvm machine.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use orlop_testbed::cpio::{Archive, DIRECTORY, PROGRAM};
use orlop_testbed::progress::step;
use orlop_testbed::setup::build;

use crate::contender::{Contender, Content, Guest, last_words};
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

/// Measures `runs` starts of each VMM in turn and prints a table.
///
/// # Errors
/// When a VMM does not run, or the kernel's traces cannot be had.
pub fn measure(runs: u32) -> Result<()> {
    let workplace = Workplace::make()?;
    let initramfs = workplace.path("initramfs");
    let mark = build::programs_directory().join("orlop-boot-mark");
    fs::write(&initramfs, archive(&mark)?)?;
    let guest = Guest {
        kernel: workplace.kernel(),
        memory_mib: MEMORY_MIB,
        content: Content::Initramfs(initramfs),
    };
    let contenders = [
        Contender::Orlop(workplace.orlop()),
        Contender::QemuMicrovm(workplace.emulator()),
    ];
    let console = workplace.path("console");
    huge_pages_on_advice();
    let mut starts = contenders.each_ref().map(|_| Vec::new());
    for run in 0..=runs {
        for (contender, starts) in contenders.iter().zip(&mut starts) {
            let name = contender.name();
            let start = one(contender, &guest, &console)
                .with_context(|| format!("{name}: {}", last_words(&console)))?;
            // The first one fills caches.
            if run > 0 {
                step(format!(
                    "run {run} of {runs}, {name}: {:.1} ms to the first instruction, {:.1} ms to init",
                    start.to_first_entry * 1000.0,
                    start.to_init * 1000.0
                ));
                starts.push(start);
            }
        }
    }
    let [ours, theirs] = &starts;
    print!("{}", report(ours, theirs)?);
    Ok(())
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
        ("private memory beyond the guest's RAM, MiB", |start| {
            start.beyond_ram as f64 / f64::from(1 << 20)
        }),
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
