//! The tables of what was measured.

use super::{MANY, Measured};
use crate::counts::Exits;
use crate::figures::{Beside, Better, Comparison, Row};
use crate::held::Held;

/// Times, what is held, and counts.
pub fn of(measured: &[Measured]) -> [Comparison; 3] {
    let names: Vec<_> = measured.iter().map(|it| it.contender.name()).collect();
    let comparison = |about, rows| Comparison {
        about,
        names: names.clone(),
        beside: Beside::Ratio,
        rows,
    };
    [
        comparison("", times(measured)),
        comparison("held", held(measured)),
        comparison("until init", counts(measured)),
    ]
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Less is better in all of them.
fn row(what: String, decimals: usize, runs: Vec<Vec<f64>>) -> Row {
    Row {
        what,
        better: Better::Less,
        decimals,
        runs,
    }
}

fn times(measured: &[Measured]) -> Vec<Row> {
    type Figure = (&'static str, fn(&Measured) -> Vec<f64>);
    let figures: [Figure; 3] = [
        ("exec to the first instruction without a kernel, ms", |it| {
            it.payloads.clone()
        }),
        ("exec to the first guest instruction, ms", |it| {
            it.starts.iter().map(|start| start.to_first_entry).collect()
        }),
        ("exec to init, ms", |it| {
            it.starts.iter().map(|start| start.to_init).collect()
        }),
    ];
    let milliseconds = |seconds: Vec<f64>| seconds.iter().map(|it| it * 1000.0).collect();
    let rows = figures.map(|(what, figure)| {
        let runs = measured.iter().map(|it| milliseconds(figure(it)));
        row(what.to_owned(), 1, runs.collect())
    });
    rows.into()
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
        let of = |held| figure(held).into_iter().collect();
        let of_one = measured.iter().map(|it| of(&it.of_one));
        rows.push(row(format!("{what}, 1 vCPU"), decimals, of_one.collect()));
        let of_many = measured.iter().map(|it| of(&it.of_many));
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
        let counts = counts.iter().map(|count| vec![*count as f64]);
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
        let report: String = report.iter().map(Comparison::table).collect();
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
