//! `orlop inspect`: all that is known of a VM.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use orlop_proto::vmm::v1::{
    self as api, ConsoleDevice, DescribeRequest, DescribeResponse, PciDevice, VmState,
};
use serde::Serialize;

use crate::client::{self, Target, answer};
use crate::output::{self, Output};

/// What `orlop inspect --help` ends with.
pub const AFTER_HELP: &str = "\
Examples:
  orlop inspect web
  orlop inspect web --output json | jq '.devices[].address'";

/// The flags of `orlop inspect`.
#[derive(Args)]
pub struct Arguments {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A VM as it is now.
#[derive(Debug, Serialize)]
pub struct Description {
    pub name: String,
    pub state: &'static str,
    pub version: String,
    pub pid: u32,
    pub vcpus: u32,
    /// How many it can have.
    pub max_vcpus: u32,
    pub memory_bytes: u64,
    /// What it is to have.
    pub wanted_memory_bytes: u64,
    /// What it can have.
    pub max_memory_bytes: u64,
    /// Whether vhost-user backends can map it.
    pub memory_shared: bool,
    /// The size of the huge pages that it consists of; 0 for memory without them.
    pub huge_page_bytes: u64,
    pub socket: PathBuf,
    pub console: Console,
    pub devices: Vec<Device>,
    /// How often its vCPUs have left the guest, by reason.
    pub exits: BTreeMap<String, u64>,
}

/// What its guest speaks to its user by.
#[derive(Debug, Default, Serialize)]
pub struct Console {
    pub device: &'static str,
    /// The pseudo-terminal that it goes to, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<String>,
}

/// A device on its PCI bus.
#[derive(Debug, Serialize)]
pub struct Device {
    pub address: String,
    pub kind: String,
    /// By what the guest knows it; empty where that is nothing that the user chose.
    pub tag: String,
    pub vendor_id: u32,
    pub device_id: u32,
    pub counters: BTreeMap<String, u64>,
}

impl Description {
    /// What a VM said of itself on its control socket.
    pub fn new(vm: DescribeResponse, socket: PathBuf) -> Self {
        Description {
            state: state(vm.state()),
            name: vm.name,
            version: vm.version,
            pid: vm.pid,
            vcpus: vm.vcpus,
            memory_bytes: vm.memory_bytes,
            max_vcpus: vm.max_vcpus,
            wanted_memory_bytes: vm.wanted_memory_bytes,
            max_memory_bytes: vm.max_memory_bytes,
            memory_shared: vm.memory_shared,
            huge_page_bytes: vm.huge_page_bytes,
            socket,
            console: vm.console.unwrap_or_default().into(),
            devices: vm.devices.into_iter().map(Device::from).collect(),
            exits: vm.exits.into_iter().collect(),
        }
    }
}

impl From<api::Console> for Console {
    fn from(console: api::Console) -> Self {
        Console {
            device: match console.device() {
                ConsoleDevice::Serial => "serial",
                ConsoleDevice::Virtio => "virtio",
                ConsoleDevice::Unspecified => "unknown",
            },
            pty: (!console.pty.is_empty()).then_some(console.pty),
        }
    }
}

impl From<PciDevice> for Device {
    fn from(device: PciDevice) -> Self {
        Device {
            address: device.address,
            kind: device.kind,
            tag: device.tag,
            vendor_id: device.vendor_id,
            device_id: device.device_id,
            counters: device.counters.into_iter().collect(),
        }
    }
}

/// A state's name for people and programs.
pub fn state(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Created => "created",
        VmState::Unspecified => "unknown",
    }
}

/// Prints what a VM is and how it does.
///
/// # Errors
/// When it does not run, or nobody reads what is printed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let vm = client::runtime()?.block_on(describe(&arguments.vm))?;
    match arguments.output {
        Output::Json => output::print(&(serde_json::to_string_pretty(&vm)? + "\n"))?,
        Output::Text => output::print(&text(&vm))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn describe(target: &Target) -> anyhow::Result<Description> {
    let mut vm = target.connect().await?;
    let answer = answer(target, vm.client.describe(DescribeRequest {})).await?;
    Ok(Description::new(answer, vm.socket))
}

fn text(vm: &Description) -> String {
    let pty = vm.console.pty.iter().map(String::as_str);
    let console: Vec<_> = std::iter::once(vm.console.device).chain(pty).collect();
    let facts = [
        ["Name:".into(), vm.name.clone()],
        ["State:".into(), vm.state.into()],
        ["vCPUs:".into(), vcpus(vm)],
        ["Memory:".into(), memory(vm)],
        ["PID:".into(), vm.pid.to_string()],
        ["Socket:".into(), vm.socket.display().to_string()],
        ["Console:".into(), console.join(" ")],
        ["Orlop:".into(), vm.version.clone()],
        ["Exits:".into(), counters(&vm.exits)],
    ];
    let mut text = output::columns(facts);
    let head = ["DEVICE", "KIND", "ID", "COUNTERS"].map(str::to_owned);
    let devices = vm.devices.iter().map(|device| {
        [
            device.address.clone(),
            if device.tag.is_empty() {
                device.kind.clone()
            } else {
                format!("{} {}", device.kind, device.tag)
            },
            format!("{:04x}:{:04x}", device.vendor_id, device.device_id),
            counters(&device.counters),
        ]
    });
    let _ = write!(
        text,
        "\n{}",
        output::columns(std::iter::once(head).chain(devices))
    );
    text
}

fn vcpus(vm: &Description) -> String {
    if vm.max_vcpus > vm.vcpus {
        format!("{} of up to {}", vm.vcpus, vm.max_vcpus)
    } else {
        vm.vcpus.to_string()
    }
}

fn memory(vm: &Description) -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut text = mib(vm.memory_bytes);
    if vm.max_memory_bytes > vm.memory_bytes {
        text = format!("{text} of up to {}", mib(vm.max_memory_bytes));
    }
    if vm.wanted_memory_bytes != vm.memory_bytes {
        text = format!("{text}, on its way to {}", mib(vm.wanted_memory_bytes));
    }
    match (vm.huge_page_bytes, vm.memory_shared) {
        (0, false) => text,
        (0, true) => format!("{text}, shared"),
        (pages, _) => format!("{text}, in huge pages of {}", mib(pages)),
    }
}

fn counters(counters: &BTreeMap<String, u64>) -> String {
    let each = counters
        .iter()
        .map(|(name, count)| format!("{name}={count}"));
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_described_for_people_and_for_programs() {
        let counters = [("reads", 3), ("errors", 0)].map(|(name, count)| (name.into(), count));
        let disk = PciDevice {
            address: "0000:00:02.0".into(),
            vendor_id: 0x1af4,
            device_id: 0x1042,
            kind: "virtio-blk".into(),
            tag: String::new(),
            counters: counters.into(),
        };
        let share = PciDevice {
            address: "0000:00:03.0".into(),
            vendor_id: 0x1af4,
            device_id: 0x105a,
            kind: "virtio-fs".into(),
            tag: "src".into(),
            ..Default::default()
        };
        let answer = DescribeResponse {
            name: "web".into(),
            version: "0.1.0".into(),
            state: VmState::Running.into(),
            vcpus: 2,
            max_vcpus: 4,
            memory_bytes: 512 << 20,
            wanted_memory_bytes: 1 << 30,
            max_memory_bytes: 1 << 30,
            memory_shared: true,
            huge_page_bytes: 2 << 20,
            pid: 77,
            devices: vec![disk, share],
            exits: [("io_out".to_owned(), 9)].into(),
            console: Some(api::Console {
                device: ConsoleDevice::Virtio.into(),
                pty: "/dev/pts/5".into(),
            }),
        };
        let vm = Description::new(answer, "/run/orlop/vm/web.sock".into());
        assert_eq!(
            text(&vm),
            "Name:     web\n\
             State:    running\n\
             vCPUs:    2 of up to 4\n\
             Memory:   512 MiB of up to 1024 MiB, on its way to 1024 MiB, in huge pages of 2 MiB\n\
             PID:      77\n\
             Socket:   /run/orlop/vm/web.sock\n\
             Console:  virtio /dev/pts/5\n\
             Orlop:    0.1.0\n\
             Exits:    io_out=9\n\
             \n\
             DEVICE        KIND           ID         COUNTERS\n\
             0000:00:02.0  virtio-blk     1af4:1042  errors=0 reads=3\n\
             0000:00:03.0  virtio-fs src  1af4:105a\n"
        );
        let json = serde_json::to_value(&vm).unwrap();
        assert_eq!(json["devices"][0]["counters"]["reads"], 3);
        assert_eq!(json["console"]["pty"], "/dev/pts/5");
    }
}
