//! The tables of what was measured.

use anyhow::Result;

use super::{MANY, Measured};
use crate::counts::Exits;
use crate::figures::{Beside, Better, Comparison, Row, median};
use crate::held::Held;

/// Times and their spread, what is held, and counts.
pub fn of(measured: &[Measured]) -> Result<[Comparison; 3]> {
    let names: Vec<_> = measured.iter().map(|it| it.contender.name()).collect();
    let comparison = |about, rows| Comparison {
        about,
        names: names.clone(),
        beside: Beside::Ratio,
        rows,
    };
    Ok([
        comparison("", times(measured)?),
        comparison("held", held(measured)),
        comparison("until init", counts(measured)),
    ])
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Less is better in all of them.
fn row(what: String, decimals: usize, figures: Vec<Option<f64>>) -> Row {
    Row {
        what,
        better: Better::Less,
        decimals,
        figures,
    }
}

fn times(measured: &[Measured]) -> Result<Vec<Row>> {
    type Figure = (&'static str, fn(&Measured) -> Vec<f64>);
    let figures: [Figure; 3] = [
        ("exec to the first instruction without a kernel", |it| {
            it.payloads.clone()
        }),
        ("exec to the first guest instruction", |it| {
            it.starts.iter().map(|start| start.to_first_entry).collect()
        }),
        ("exec to init", |it| {
            it.starts.iter().map(|start| start.to_init).collect()
        }),
    ];
    let mut rows = Vec::new();
    for (what, figure) in figures {
        let mut medians = Vec::new();
        let mut spread: f64 = 0.0;
        for measured in measured {
            let milliseconds: Vec<_> = figure(measured).iter().map(|it| it * 1000.0).collect();
            let least = milliseconds.iter().copied().fold(f64::INFINITY, f64::min);
            let most = milliseconds.iter().copied().fold(0.0, f64::max);
            let median = median(milliseconds)?;
            spread = spread.max((most - least) / median);
            medians.push(Some(median));
        }
        let percent = spread * 100.0;
        rows.push(row(
            format!("{what}, ms (spread {percent:.0} % at most)"),
            1,
            medians,
        ));
    }
    Ok(rows)
}

fn held(measured: &[Measured]) -> Vec<Row> {
    type Figure = (&'static str, usize, fn(&Held) -> Option<f64>);
    let figures: [Figure; 5] = [
        ("private memory beyond the guest's RAM, MiB", 1, |held| {
            Some(mib(held.beyond_ram))
        }),
        ("what no other VM shares, MiB", 1, |held| {
            held.unshared.map(mib)
        }),
        ("its page tables, KiB", 0, |held| {
            Some(held.page_tables as f64 / 1024.0)
        }),
        ("threads", 0, |held| Some(held.threads as f64)),
        ("open files", 0, |held| Some(held.files as f64)),
    ];
    let mut rows = Vec::new();
    for (what, decimals, figure) in figures {
        let of_one = measured.iter().map(|it| figure(&it.of_one));
        rows.push(row(format!("{what}, 1 vCPU"), decimals, of_one.collect()));
        let of_many = measured.iter().map(|it| figure(&it.of_many));
        rows.push(row(
            format!("{what}, {MANY} vCPUs, no kernel"),
            decimals,
            of_many.collect(),
        ));
    }
    rows
}

/// The counts of one start, which are the same each time but for interrupts of the host's.
fn counts(measured: &[Measured]) -> Vec<Row> {
    let calls = measured.iter().map(|it| it.counts.system_calls).collect();
    let calls = (
        "system calls before the first guest instruction".to_owned(),
        calls,
    );
    let exits: Vec<_> = measured.iter().map(|it| &it.counts.exits).collect();
    let rows = std::iter::once(calls).chain(Exits::rows(&exits));
    rows.map(|(what, counts): (String, Vec<u64>)| {
        let counts = counts.iter().map(|count| Some(*count as f64));
        row(what, 0, counts.collect())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Contender;
    use crate::start::Start;

    #[test]
    fn the_report_has_medians_and_their_ratios() {
        let start = |scale: f64| Start {
            to_first_entry: 0.01 * scale,
            to_init: 0.1 * scale,
        };
        let measured = |contender, mib: u64, starts: Vec<Start>| Measured {
            payloads: vec![0.004; starts.len()],
            starts,
            of_one: Held {
                beyond_ram: mib << 20,
                ..Held::default()
            },
            ..Measured::new(contender)
        };
        let report = of(&[
            measured(
                Contender::Orlop("o".into()),
                2,
                vec![start(1.0), start(1.0), start(50.0)],
            ),
            measured(Contender::Firecracker("f".into()), 8, vec![start(4.0); 3]),
        ]);
        let report: String = report.unwrap().iter().map(Comparison::table).collect();
        for line in [
            "|  | Orlop | Firecracker | ratio |",
            "| exec to init, ms (spread 4900 % at most) | 100.0 | 400.0 | 0.25 |",
            "| private memory beyond the guest's RAM, MiB, 1 vCPU | 2.0 | 8.0 | 0.25 |",
            "| what no other VM shares, MiB, 1 vCPU | - | - | - |",
            "| threads, 8 vCPUs, no kernel | 0 | 0 | - |",
        ] {
            assert!(report.contains(line), "{line}: {report}");
        }
    }
}
