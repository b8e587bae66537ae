//! `orlop events`: what happens to a VM, as it happens.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use orlop_proto::vmm::v1::{Event, EventKind, EventsRequest};
use serde::Serialize;

use crate::client::{self, Target, answer, said};
use crate::output::{self, Output};

/// What `orlop events --help` ends with.
pub const AFTER_HELP: &str = "\
Ends when the VM has ended.

Examples:
  orlop events web
  orlop events web --output json | jq -r .event";

/// The flags of `orlop events`.
#[derive(Args)]
pub struct Arguments {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// How to print them: JSON is an object a line
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// An event for programs.
#[derive(Debug, Serialize)]
struct Line {
    time: String,
    event: &'static str,
    message: String,
}

impl From<Event> for Line {
    fn from(event: Event) -> Self {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(event.unix_ms);
        Line {
            time: humantime::format_rfc3339_millis(time).to_string(),
            event: match event.kind() {
                EventKind::Unspecified => "unknown",
                EventKind::Booted => "booted",
                EventKind::Paused => "paused",
                EventKind::Resumed => "resumed",
                EventKind::PowerButton => "power-button",
                EventKind::Reset => "reset",
                EventKind::Ended => "ended",
                EventKind::Missed => "missed",
                EventKind::DeviceAdded => "device-added",
                EventKind::DeviceRemoved => "device-removed",
                EventKind::Resized => "resized",
            },
            message: event.message,
        }
    }
}

/// Prints events until the VM has ended.
///
/// # Errors
/// When the VM does not run, or nobody reads what is printed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    client::runtime()?.block_on(async {
        let target = &arguments.vm;
        let mut vm = target.connect().await?;
        let mut events = answer(target, vm.client.events(EventsRequest {})).await?;
        loop {
            match events.message().await {
                Ok(Some(event)) => print(&event.into(), arguments.output)?,
                Ok(None) => return Ok(ExitCode::SUCCESS),
                Err(status) => return Err(said(target, &status)),
            }
        }
    })
}

fn print(line: &Line, how: Output) -> anyhow::Result<()> {
    let text = match how {
        Output::Json => serde_json::to_string(line)?,
        Output::Text => format!("{}  {:<14}  {}", line.time, line.event, line.message),
    };
    Ok(output::print(&(text + "\n"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_time_and_name() {
        let event = Event {
            unix_ms: 1_000,
            kind: EventKind::Ended.into(),
            message: "the guest powered off".into(),
            ..Default::default()
        };
        let line = serde_json::to_string(&Line::from(event)).unwrap();
        assert_eq!(
            line,
            r#"{"time":"1970-01-01T00:00:01.000Z","event":"ended","message":"the guest powered off"}"#
        );
    }
}
