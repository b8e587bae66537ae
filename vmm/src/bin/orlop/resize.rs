//! `orlop resize`: another number of vCPUs, another size of memory.

use std::process::ExitCode;

use clap::Args;
use orlop_proto::vmm::v1::ResizeRequest;
use orlop_vmm::config::{VcpuCount, mebibytes};

use crate::client::{self, Target, answer, done, milliseconds};

/// What `orlop resize --help` ends with.
pub const AFTER_HELP: &str = "\
A VM can have another size if it was started with --cpus N,max=N or --memory SIZE,max=SIZE. Its guest must take what comes: many systems
do so by themselves; others by `echo 1 >/sys/devices/system/cpu/cpuN/online`, and by memhp_default_state=online_movable on the kernel's command
line. What it uses it may not be able to give up; `orlop inspect` tells how far it is.

Example:
  orlop resize web --cpus 4 --memory 2G";

/// The flags of `orlop resize`.
#[derive(Args)]
#[group(required = true, multiple = true, id = "size", args = ["cpus", "memory"])]
pub struct Arguments {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// How many processors it is to have
    #[arg(long, value_name = "N")]
    cpus: Option<VcpuCount>,
    /// How much memory it is to have, as 2G
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    memory: Option<u64>,
    /// How long the guest may take over it, as 30s
    #[arg(long, short, value_name = "TIME", default_value = "10s")]
    timeout: humantime::Duration,
}

/// Gives a VM another size, and waits until its guest has it.
///
/// # Errors
/// When the VM does not run, cannot have that size, or its guest does not come to it in time.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let request = ResizeRequest {
        vcpus: arguments.cpus.map_or(0, |cpus| cpus.get().into()),
        memory_bytes: arguments.memory.unwrap_or(0),
        timeout_ms: milliseconds(arguments.timeout)?,
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        let begun = answer(&arguments.vm, vm.client.resize(request)).await?;
        done(&arguments.vm, &mut vm.client, begun).await?;
        Ok(ExitCode::SUCCESS)
    })
}
