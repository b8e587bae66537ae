//! `orlop stats`: what VMs do, counter by counter, once or again and again.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use orlop_proto::vmm::v1::DescribeRequest;
use serde::Serialize;

use crate::client::{self, Ended, Target, Vm, answer};
use crate::inspect::{Description, Device};
use crate::output::{self, Output};

/// What `orlop stats --help` ends with.
pub const AFTER_HELP: &str = "\
Ends when the VM has ended.

Examples:
  orlop stats web
  orlop stats web --no-stream
  orlop stats web --output json | jq '.exits.io_out'";

/// The flags of `orlop stats`.
#[derive(Args)]
pub struct Arguments {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// How long to wait between two rounds, as 500ms or 2s
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: humantime::Duration,
    /// Print one round and end
    #[arg(long)]
    no_stream: bool,
    /// How to print it: JSON is an object a round
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A round for programs.
#[derive(Serialize)]
struct Round<'r> {
    name: &'r str,
    state: &'static str,
    devices: &'r [Device],
    exits: &'r std::collections::BTreeMap<String, u64>,
}

/// Prints rounds until the VM has ended, or once.
///
/// # Errors
/// When the VM does not run, or nobody reads what is printed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        let mut before = Counted::default();
        loop {
            let now = match sample(&mut vm).await {
                Err(error) if before.any() && error.is::<Ended>() => return Ok(ExitCode::SUCCESS),
                sampled => sampled?,
            };
            match arguments.output {
                Output::Json => output::print(&(serde_json::to_string(&round(&now))? + "\n"))?,
                Output::Text => show(&now, &before, arguments.no_stream)?,
            }
            if arguments.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
            before = Counted::of(&now);
            tokio::time::sleep(*arguments.interval).await;
        }
    })
}

async fn sample(vm: &mut Vm) -> anyhow::Result<Description> {
    let described = answer(&vm.target, vm.client.describe(DescribeRequest {})).await?;
    Ok(Description::new(described, vm.socket.clone()))
}

fn round(vm: &Description) -> Round<'_> {
    Round {
        name: &vm.name,
        state: vm.state,
        devices: &vm.devices,
        exits: &vm.exits,
    }
}

fn show(now: &Description, before: &Counted, once: bool) -> io::Result<()> {
    // A terminal shows the newest round alone.
    let clear = if io::stdout().is_terminal() && !once {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    output::print(&format!("{clear}{}\n", table(now, before)))
}

fn table(now: &Description, before: &Counted) -> String {
    let head = ["DEVICE", "KIND", "COUNTER", "TOTAL", "PER SECOND"].map(str::to_owned);
    let rows = counters(now).map(|(address, kind, name, total)| {
        let rate = before.rate(address, name, total);
        [
            address.into(),
            kind.into(),
            name.into(),
            total.to_string(),
            rate.map_or("-".into(), |rate| format!("{rate:.0}")),
        ]
    });
    let what = format!("{} ({})\n", now.name, now.state);
    what + &output::columns(std::iter::once(head).chain(rows))
}

/// Every counter: address, kind, name, count.
fn counters(vm: &Description) -> impl Iterator<Item = (&str, &str, &str, u64)> {
    let exits = vm.exits.iter();
    let exits = exits.map(|(name, count)| ("-", "vcpus", name.as_str(), *count));
    let devices = vm.devices.iter().flat_map(|device| {
        let counters = device.counters.iter();
        counters.map(|(name, count)| {
            (
                device.address.as_str(),
                device.kind.as_str(),
                name.as_str(),
                *count,
            )
        })
    });
    exits.chain(devices)
}

/// A round that is over, to see what has come since.
#[derive(Default)]
struct Counted {
    at: Option<Instant>,
    counts: HashMap<(String, String), u64>,
}

impl Counted {
    fn of(vm: &Description) -> Self {
        let counts =
            counters(vm).map(|(address, _, name, count)| ((address.into(), name.into()), count));
        Counted {
            at: Some(Instant::now()),
            counts: counts.collect(),
        }
    }

    fn any(&self) -> bool {
        self.at.is_some()
    }

    /// How much came in a second. A guest that has booted meanwhile counts from 0 again.
    fn rate(&self, address: &str, name: &str, now: u64) -> Option<f64> {
        let before = self.counts.get(&(address.to_owned(), name.to_owned()))?;
        let since = self.at?.elapsed().max(Duration::from_millis(1));
        Some(now.saturating_sub(*before) as f64 / since.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(count: u64) -> Description {
        Description {
            name: "web".into(),
            state: "running",
            version: String::new(),
            pid: 1,
            vcpus: 1,
            max_vcpus: 1,
            memory_bytes: 0,
            wanted_memory_bytes: 0,
            max_memory_bytes: 0,
            memory_shared: false,
            huge_page_bytes: 0,
            socket: "s".into(),
            console: Default::default(),
            devices: vec![Device {
                address: "0000:00:01.0".into(),
                kind: "virtio-rng".into(),
                tag: String::new(),
                vendor_id: 0,
                device_id: 0,
                counters: [("bytes".to_owned(), count)].into(),
            }],
            exits: [("io_out".to_owned(), count)].into(),
        }
    }

    #[test]
    fn the_first_round_has_no_rates() {
        assert_eq!(
            table(&description(7), &Counted::default()),
            "web (running)\n\
             DEVICE        KIND        COUNTER  TOTAL  PER SECOND\n\
             -             vcpus       io_out   7      -\n\
             0000:00:01.0  virtio-rng  bytes    7      -\n"
        );
    }

    #[test]
    fn rates_are_of_what_came_since() {
        let before = Counted {
            at: Instant::now().checked_sub(Duration::from_secs(10)),
            ..Counted::of(&description(100))
        };
        let rate = before.rate("-", "io_out", 200).unwrap();
        assert!((5.0..=10.0).contains(&rate), "{rate}");
        assert_eq!(before.rate("-", "io_out", 7), Some(0.0), "it booted again");
        assert_eq!(before.rate("-", "new", 7), None);
    }
}
