//! `orlop ps`: the VMs that run.

use std::os::unix::net::UnixStream;
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
use crate::pods::{self, Pod, ShortPath};

/// How long a VM may take to answer. One that does not is listed as such.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of a VM's name the table shows: a sandbox's id is four times as long.
const SHOWN: usize = 16;

/// What `orlop ps --help` ends with.
pub const AFTER_HELP: &str = "\
VMs are found by their control sockets in $XDG_RUNTIME_DIR/orlop/vm, or /run/orlop/vm; one started with --api-socket elsewhere is not. Root sees the
VMs of pods as well, with the names that Kubernetes has for them; all commands take the beginning of such a VM's name.

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
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
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
    let found = sockets.into_iter().map(Found::Own);
    let found: Vec<_> = found
        .chain(pods::all().into_iter().map(Found::OfPod))
        .collect();
    let asked: Vec<_> = found
        .iter()
        .map(|found| runtime.spawn(ask(found.socket().to_owned())))
        .collect();
    let mut rows = Vec::new();
    for (found, answer) in found.iter().zip(asked) {
        let answer = runtime.block_on(answer)?;
        // The socket of a pod's VM that has been killed is the shim's to remove.
        if answer.is_some() || found.is_alive() {
            rows.push(Row::new(found, answer));
        }
    }
    match arguments.output {
        Output::Json => output::print(&(serde_json::to_string_pretty(&rows)? + "\n"))?,
        Output::Text => output::print(&table(&rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A control socket, and whose it is.
enum Found {
    Own(PathBuf),
    OfPod(Pod),
}

impl Found {
    fn socket(&self) -> &Path {
        match self {
            Found::Own(socket) => socket,
            Found::OfPod(pod) => &pod.socket,
        }
    }

    fn is_alive(&self) -> bool {
        // Those of the user's own were looked at when they were listed.
        matches!(self, Found::Own(_))
            || ShortPath::of(self.socket())
                .is_ok_and(|short| UnixStream::connect(short.path).is_ok())
    }
}

async fn ask(socket: PathBuf) -> Option<DescribeResponse> {
    let answer = async {
        let short = ShortPath::of(&socket).ok()?;
        let channel = connect::unix(&short.path).await.ok()?;
        let answer = VmmClient::new(channel).describe(DescribeRequest {}).await;
        Some(answer.ok()?.into_inner())
    };
    tokio::time::timeout(PATIENCE, answer).await.ok()?
}

impl Row {
    fn new(found: &Found, answer: Option<DescribeResponse>) -> Self {
        let socket = found.socket();
        let state = answer
            .as_ref()
            .map_or("no answer", |vm| inspect::state(vm.state()));
        let of_socket = socket.file_stem().unwrap_or_default();
        let (name, pod) = match found {
            Found::Own(_) => (of_socket.to_string_lossy().into_owned(), None),
            Found::OfPod(pod) => (pod.id.clone(), pod.name.clone()),
        };
        Row {
            name,
            namespace: pod.as_ref().map(|pod| pod.namespace.clone()),
            pod: pod.map(|pod| pod.name),
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
    let head = [
        "NAME",
        "NAMESPACE",
        "POD",
        "STATE",
        "VCPUS",
        "MEMORY",
        "PID",
    ]
    .map(str::to_owned);
    let body = rows.iter().map(|row| {
        let known = |value: fn(&Known) -> String| row.vm.as_ref().map_or("-".into(), value);
        let of_pod = |name: &Option<String>| name.clone().map_or("-".into(), |name| clean(&name));
        [
            // As much of an id as tells it from others.
            row.name.chars().take(SHOWN).collect(),
            of_pod(&row.namespace),
            of_pod(&row.pod),
            row.state.into(),
            known(|vm| vm.vcpus.to_string()),
            known(|vm| format!("{}M", vm.memory_bytes >> 20)),
            known(|vm| vm.pid.to_string()),
        ]
    });
    output::columns(std::iter::once(head).chain(body))
}

/// Names come from whoever made the pod, and go to a terminal.
fn clean(name: &str) -> String {
    let safe = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::PodName;
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
        let own = |socket: &str| Found::Own(socket.into());
        let pod = Found::OfPod(Pod {
            id: "0123456789abcdef0123456789abcdef".into(),
            name: Some(PodName {
                namespace: "prod".into(),
                name: "web-0\u{1b}".into(),
            }),
            socket: "/run/orlop/k8s.io/x/vmm.sock".into(),
        });
        let rows = [
            Row::new(&own("/run/orlop/vm/web.sock"), Some(answer.clone())),
            Row::new(&own("/run/orlop/vm/stuck.sock"), None),
            Row::new(&pod, Some(answer)),
        ];
        assert_eq!(
            table(&rows),
            "NAME              NAMESPACE  POD     STATE      VCPUS  MEMORY  PID\n\
             web               -          -       paused     2      512M    77\n\
             stuck             -          -       no answer  -      -       -\n\
             0123456789abcdef  prod       web-0?  paused     2      512M    77\n"
        );
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["memory_bytes"], 512 << 20);
        assert!(json[1].get("memory_bytes").is_none());
        assert!(json[1].get("pod").is_none());
        assert_eq!(json[2]["namespace"], "prod");
    }
}
