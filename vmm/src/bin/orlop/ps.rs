//! `orlop ps`: the VMs that run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use orlop_proto::connect;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use orlop_proto::vmm::v1::{DescribeRequest, DescribeResponse};
use orlop_vmm::state::StateDirectory;
use serde::Serialize;

use crate::client;
use crate::inspect;
use crate::output::{self, Output};

/// How long a VM may take to answer. One that does not is listed as such.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `orlop ps --help` ends with.
pub const AFTER_HELP: &str = "\
VMs are found by their control sockets in $XDG_RUNTIME_DIR/orlop/vm, or /run/orlop/vm; one started with --api-socket elsewhere is not.

Examples:
  orlop ps
  orlop ps --output json | jq -r '.[] | select(.state == \"paused\").name'";

/// The flags of `orlop ps`.
#[derive(Args)]
pub struct Arguments {
    /// How to print the list
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A VM in the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: &'static str,
    #[serde(flatten)]
    vm: Option<Known>,
    socket: PathBuf,
}

/// What only a VM that answers tells.
#[derive(Debug, Serialize)]
struct Known {
    vcpus: u32,
    memory_bytes: u64,
    pid: u32,
}

/// Prints the VMs that run.
///
/// # Errors
/// When the state directory cannot be read, or nobody reads the list.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let state = StateDirectory::of_user();
    let sockets = state
        .alive()
        .with_context(|| format!("cannot list {}", state.path().display()))?;
    let runtime = client::runtime()?;
    let asked: Vec<_> = sockets
        .iter()
        .map(|socket| runtime.spawn(ask(socket.clone())))
        .collect();
    let mut rows = Vec::new();
    for (socket, answer) in sockets.iter().zip(asked) {
        rows.push(Row::new(socket, runtime.block_on(answer)?));
    }
    match arguments.output {
        Output::Json => output::print(&(serde_json::to_string_pretty(&rows)? + "\n"))?,
        Output::Text => output::print(&table(&rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(socket: PathBuf) -> Option<DescribeResponse> {
    let answer = async {
        let channel = connect::unix(socket).await.ok()?;
        let answer = VmmClient::new(channel).describe(DescribeRequest {}).await;
        Some(answer.ok()?.into_inner())
    };
    tokio::time::timeout(PATIENCE, answer).await.ok()?
}

impl Row {
    fn new(socket: &Path, answer: Option<DescribeResponse>) -> Self {
        let state = answer
            .as_ref()
            .map_or("no answer", |vm| inspect::state(vm.state()));
        let of_socket = socket.file_stem().unwrap_or_default();
        Row {
            name: of_socket.to_string_lossy().into_owned(),
            state,
            vm: answer.map(|vm| Known {
                vcpus: vm.vcpus,
                memory_bytes: vm.memory_bytes,
                pid: vm.pid,
            }),
            socket: socket.to_owned(),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["NAME", "STATE", "VCPUS", "MEMORY", "PID"].map(str::to_owned);
    let body = rows.iter().map(|row| {
        let known = |value: fn(&Known) -> String| row.vm.as_ref().map_or("-".into(), value);
        [
            row.name.clone(),
            row.state.into(),
            known(|vm| vm.vcpus.to_string()),
            known(|vm| format!("{}M", vm.memory_bytes >> 20)),
            known(|vm| vm.pid.to_string()),
        ]
    });
    output::columns(std::iter::once(head).chain(body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_proto::vmm::v1::VmState;

    #[test]
    fn a_vm_that_answers_and_one_that_does_not_are_both_listed() {
        let answer = DescribeResponse {
            name: "web".into(),
            state: VmState::Paused.into(),
            vcpus: 2,
            memory_bytes: 512 << 20,
            pid: 77,
            ..Default::default()
        };
        let rows = [
            Row::new(Path::new("/run/orlop/vm/web.sock"), Some(answer)),
            Row::new(Path::new("/run/orlop/vm/stuck.sock"), None),
        ];
        assert_eq!(
            table(&rows),
            "NAME   STATE      VCPUS  MEMORY  PID\n\
             web    paused     2      512M    77\n\
             stuck  no answer  -      -       -\n"
        );
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["memory_bytes"], 512 << 20);
        assert!(json[1].get("memory_bytes").is_none());
    }
}
