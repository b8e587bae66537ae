//! What requests to a guest's devices cost, side by side with QEMU's machines and other VMMs: exits of the guest, and time.
//!
//! A guest does one thing after another ([`loads`]), each first a little and then more of it, and gives its mark behind each. The host's kernel has the
//! time of each mark and the exits until then. The difference, divided by how much more was done, is what one costs.

mod loads;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_testbed::progress::step;
use orlop_testbed::setup::build;

use self::loads::{COUNTED, Load, MARK, SINK, SOURCE};
use crate::contender::{Contender, Content, Devices, Guest, last_words, versions};
use crate::counts::Counter;
use crate::devices::{HOST, MEMORY_MIB, TAP, end, host, prepare};
use crate::figures::{Beside, Better, Comparison, Row};
use crate::trace::Marks;
use crate::workplace::Workplace;

/// How long a guest may take from one mark to the next where all is emulated.
const LIMIT: Duration = Duration::from_secs(180);

/// What one of something costs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cost {
    microseconds: f64,
    /// Requests that the guest's kernel has made of the disk.
    requests: f64,
    /// Exits by their kinds.
    exits: BTreeMap<String, f64>,
}

impl Cost {
    fn exits(&self) -> f64 {
        self.exits.values().sum()
    }
}

/// What the host knew at a mark.
#[derive(Clone, Debug)]
struct Seen {
    seconds: f64,
    /// By the guest's word.
    requests: u64,
    exits: BTreeMap<String, u64>,
}

/// What a VMM's guests have cost, each a list as that of the loads.
struct Measured {
    contender: Contender,
    runs: Vec<Vec<Cost>>,
}

/// Measures the loads that [`loads::named`] has for `only`, `runs` times for each VMM in turn, and prints tables.
///
/// # Errors
/// When no load is named so, or a guest does not do what it is to do.
pub fn measure(runs: u32, only: &[String]) -> Result<()> {
    let loads = loads::named(only);
    ensure!(!loads.is_empty(), "no load's name has {only:?} in it");
    let workplace = Workplace::make()?;
    let mark = build::programs_directory().join("orlop-boot-mark");
    let devices = prepare(&workplace, &loads::script(&loads), &[(MARK, &mark)])?;
    let _tap = host::Tap::make(TAP)?;
    serve()?;
    let mut measured: Vec<_> = workplace
        .contenders()?
        .into_iter()
        .map(|contender| Measured {
            contender,
            runs: Vec::new(),
        })
        .collect();
    for run in 1..=runs {
        for measured in &mut measured {
            let contender = &measured.contender;
            step(format!("run {run} of {runs}, {}", contender.name()));
            let costs = one(&workplace, contender, &devices, &loads);
            measured.runs.push(costs.with_context(|| contender.name())?);
        }
    }
    let tables = tables(&measured, &loads);
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        print!("{}", table.table());
    }
    print!("{}", versions(measured.iter().map(|it| &it.contender))?);
    Ok(())
}

/// Has the host's ends of the guests' connections served from now on.
fn serve() -> Result<()> {
    type End = fn(TcpStream) -> io::Result<()>;
    let ends: [(u16, End); 2] = [
        (SINK, |mut stream| {
            io::copy(&mut stream, &mut io::sink()).map(drop)
        }),
        (SOURCE, |mut stream| {
            let bytes = vec![0; 64 << 10];
            loop {
                stream.write_all(&bytes)?;
            }
        }),
    ];
    for (port, end) in ends {
        let listener = TcpListener::bind((HOST, port))
            .with_context(|| format!("cannot listen at port {port}"))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The guest ends it when it has enough, and says so if it has not.
                let _ = end(stream);
            }
        });
    }
    Ok(())
}

/// Starts a guest, which does everything once.
fn one(
    workplace: &Workplace,
    contender: &Contender,
    devices: &Devices,
    loads: &[&Load],
) -> Result<Vec<Cost>> {
    let devices = Devices {
        order: format!("end={}", end(contender)),
        ..devices.clone()
    };
    let console = workplace.path("console");
    let shared = tempfile::tempdir_in("/run")?;
    let _fs = host::virtiofsd(shared.path(), &devices.fs, &workplace.path("virtiofsd"))?;
    // One that the last guest's VMM has left.
    let _ = fs::remove_file(&devices.vsock);
    let guest = Guest {
        kernel: workplace.kernel(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        content: Content::Devices(devices),
        needs_timer: true,
    };
    let counter = Counter::begin()?;
    let mut marks = Marks::begin()?;
    let vmm = contender.start(&guest, &console)?;
    let mut seen = Vec::new();
    for _ in 0..loads::marks(loads) {
        let seconds = marks.next(LIMIT);
        let seconds = seconds.with_context(|| last_words(&console))?;
        let exits = counter.so_far()?.all;
        seen.push((seconds, exits));
    }
    vmm.wait(LIMIT).with_context(|| last_words(&console))?;
    let counted = requests(&fs::read(&console)?).with_context(|| last_words(&console))?;
    ensure!(counted.len() == seen.len(), last_words(&console));
    let seen = seen.into_iter().zip(counted);
    let seen = seen.map(|((seconds, exits), requests)| Seen {
        seconds,
        requests,
        exits,
    });
    let costs = costs(loads, &seen.collect::<Vec<_>>());
    for (load, cost) in loads.iter().zip(&costs) {
        step(format!(
            "{}: {:.1} µs and {:.2} exits a {}: {}",
            load.what,
            cost.microseconds,
            cost.exits(),
            load.unit,
            kinds(&cost.exits)
        ));
    }
    Ok(costs)
}

/// How many requests the guest's kernel had made of its disk before each mark, as its lines say that are about them. The first and the fifth number are the reads and
/// the writes (Documentation/block/stat.rst).
fn requests(console: &[u8]) -> Option<Vec<u64>> {
    let said = String::from_utf8_lossy(console);
    let lines = said.lines().filter_map(|line| line.strip_prefix(COUNTED));
    lines
        .map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let reads: u64 = numbers.next()?.ok()?;
            let writes: u64 = numbers.nth(3)?.ok()?;
            Some(reads + writes)
        })
        .collect()
}

/// What one of each load costs, by what was seen at the marks.
fn costs(loads: &[&Load], seen: &[Seen]) -> Vec<Cost> {
    let cost = |(load, at): (&&Load, usize)| {
        let [before, between, after] = seen.get(at..at + 3)? else {
            return None;
        };
        // Of what only grows.
        let more = |of: &dyn Fn(&Seen) -> f64| {
            let (few, many) = (of(between) - of(before), of(after) - of(between));
            (many - few) / load.more()
        };
        let kind = |kind: &String| {
            let of_kind = |seen: &Seen| seen.exits.get(kind).copied().unwrap_or_default() as f64;
            (kind.clone(), more(&of_kind))
        };
        Some(Cost {
            microseconds: more(&|seen| seen.seconds) * 1e6,
            requests: more(&|seen| seen.requests as f64),
            exits: after.exits.keys().map(kind).collect(),
        })
    };
    let places = (0..).step_by(2);
    loads.iter().zip(places).filter_map(cost).collect()
}

/// Those of which there is one in twenty at least.
fn kinds(exits: &BTreeMap<String, f64>) -> String {
    let several = exits.iter().filter(|(_, count)| count.abs() > 0.05);
    let several = several.map(|(kind, count)| format!("{count:.2} {kind}"));
    several.collect::<Vec<_>>().join(", ")
}

fn tables(measured: &[Measured], loads: &[&Load]) -> [Comparison; 3] {
    type Figure = fn(&Cost) -> f64;
    type Which = fn(&Load) -> bool;
    let table = |about, which: Which, figure: Figure, decimals| {
        let mut rows = Vec::new();
        let loads = loads.iter().enumerate();
        for (number, load) in loads.filter(|(_, load)| which(load)) {
            let of = |measured: &Measured| {
                let costs = measured.runs.iter().filter_map(|run| run.get(number));
                costs.map(figure).collect()
            };
            rows.push(Row {
                what: format!("{}, a {}", load.what, load.unit),
                better: Better::Less,
                decimals,
                runs: measured.iter().map(of).collect(),
            });
        }
        Comparison {
            about,
            names: measured.iter().map(|it| it.contender.name()).collect(),
            beside: Beside::Ratio,
            rows,
        }
    };
    [
        table("microseconds", |_| true, |cost| cost.microseconds, 1),
        table("exits", |_| true, Cost::exits, 2),
        table(
            "requests to the disk",
            Load::is_of_disk,
            |cost| cost.requests,
            2,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_costs_is_the_difference_between_many_and_few() {
        let all = loads::named(&[]);
        let seen: Vec<_> = (0..loads::marks(&all))
            .map(|at| {
                // Each starts at a cost of its own, and does `more()` more the second time, 2 exits each.
                let twos = (1..=at).filter(|at| at % 2 == 0);
                let done = twos.map(|at| all[at / 2 - 1].more()).sum::<f64>();
                Seen {
                    seconds: at as f64 * 7.0 + done * 3e-6,
                    requests: at as u64 * 3 + done as u64 * 4,
                    exits: BTreeMap::from([
                        ("HLT".to_owned(), at as u64 * 100 + done as u64 * 2),
                        ("port".to_owned(), at as u64 * 5),
                    ]),
                }
            })
            .collect();
        let costs = costs(&all, &seen);
        assert_eq!(costs.len(), all.len());
        for cost in costs {
            assert!((cost.microseconds - 3.0).abs() < 1e-6, "{cost:?}");
            assert_eq!(cost.exits(), 2.0);
            assert_eq!(cost.requests, 4.0);
            assert_eq!(kinds(&cost.exits), "2.00 HLT");
        }
    }

    #[test]
    fn requests_are_counted_by_the_guests_word() {
        let console = b"counted 1 0 8 0 2 0 8\r\nnoise\r\ncounted 10 0 80 1 20 0 80 1\r\nmore\r\n";
        assert_eq!(requests(console), Some(vec![3, 30]));
        assert_eq!(requests(b"counted 10 0 80\n"), None);
        assert_eq!(requests(b"counted ten 0 80 1 20\n"), None);
        assert_eq!(requests(b"nothing\n"), Some(vec![]));
    }

    #[test]
    fn a_guest_gives_a_mark_behind_all_that_it_does() {
        let all = loads::named(&[]);
        let stand_ins = "mount() { :; }; ip() { :; }; dd() { :; }; socat() { :; }; sleep() { :; }; mark() { echo mark; }; cd() { :; }; cat() { :; }; end=:";
        let script = format!("{stand_ins}\n{}", loads::script(&all));
        let directory = tempfile::tempdir().unwrap();
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).current_dir(&directory);
        let said = shell.output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let marks = said.lines().filter(|line| *line == "mark").count();
        assert_eq!(marks, loads::marks(&all), "{said}");
    }

    #[test]
    fn loads_are_named_by_a_part_of_their_names() {
        let named = |only: &[&str]| {
            let only: Vec<_> = only.iter().map(|word| (*word).to_owned()).collect();
            loads::named(&only).len()
        };
        assert_eq!(named(&["net"]), 2);
        assert_eq!(named(&["1 MiB", "net"]), 4);
        assert_eq!(named(&["nothing"]), 0);
    }
}
