//! `cargo testbed`: the command line of the testbed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use orlop_testbed::bench::Measurement;
use orlop_testbed::containerd::{Sandboxer, Version};
use orlop_testbed::host::HostKernel;
use orlop_testbed::stories::Telling;
use orlop_testbed::{cluster, demo, host, package, progress, setup, stories};

/// Runs Orlop's demo and tests on any Debian 12, with or without hardware virtualisation.
#[derive(Parser)]
#[command(name = "cargo testbed", bin_name = "cargo testbed", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Install and build everything that the demo and the benchmarks need
    Setup,
    /// Build the guest's kernel of our own
    Kernel,
    /// Run a command where KVM is: here if this machine has it, else in the virtual host
    Host(HostArguments),
    /// Show a Kubernetes Deployment whose pods are KVM guests, from nothing
    Demo {
        /// Show a pod through containerd alone, without Kubernetes, which takes long to build
        #[arg(long)]
        quick: bool,
    },
    /// Not for people: the demo, on a machine that has KVM or, of the cluster, in its namespaces
    #[command(hide = true)]
    Demonstrate {
        #[arg(long)]
        quick: bool,
    },
    /// Run a command beside a Kubernetes cluster of its own, with `kubectl` in its PATH
    Cluster {
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Not for people: the same, in the cluster's namespaces
    #[command(hide = true)]
    InCluster {
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Not for people: the cluster's node, on a machine that has KVM
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        files: PathBuf,
    },
    /// Build a release and pack it for nodes of a cluster: docs/kubernetes.md tells what to do with it
    Package {
        /// The archive; by default orlop-VERSION-x86_64.tar.gz in this directory
        file: Option<PathBuf>,
    },
    /// Measure Orlop; benches/README.md tells how
    Bench(Measurement),
    /// Run all tests, after a setup of what they need: the unit tests here, the stories where KVM is
    Test {
        /// Only the stories of these programs (such as `disks`), or whose names contain one of these; no unit tests then
        only: Vec<String>,
        /// Have the stories that move much data move a gigabyte, which takes an emulated machine long
        #[arg(long)]
        full: bool,
        /// Tell those as well that take long, and those of a Kubernetes cluster, which is built first; by name they are told in any case
        #[arg(long)]
        all: bool,
        /// The containerd that the stories have, but for those of a Kubernetes cluster; another than Debian's own is built first
        #[arg(long, value_enum, value_name = "VERSION", default_value_t)]
        containerd: Version,
        /// Who makes the sandboxes of Orlop's pods: containerd 2 by tasks, or the shim by the sandbox interface
        #[arg(long, value_enum, value_name = "WHO", default_value_t)]
        sandboxer: Sandboxer,
        /// The kernel of the virtual host in which stories are told, but for those of a Kubernetes cluster
        #[arg(long, value_enum, value_name = "KERNEL", default_value_t)]
        host_kernel: HostKernel,
    },
    /// Have everything happen to a VM at random while it works, and see whether anything is lost or grows
    Soak {
        /// How long, after a first round
        #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
        /// What decides the order; a run prints its own
        #[arg(long)]
        seed: Option<u64>,
        /// The virtual host's kernel
        #[arg(long, value_enum, value_name = "KERNEL", default_value_t)]
        host_kernel: HostKernel,
    },
    /// Not for people: the stories, on a machine that has KVM
    #[command(hide = true)]
    Stories {
        #[arg(long = "program")]
        programs: Vec<PathBuf>,
        #[arg(last = true)]
        only: Vec<String>,
    },
    /// Not for people: the first process inside a virtual host
    #[command(hide = true)]
    Inside,
}

#[derive(clap::Args)]
struct HostArguments {
    /// Use the virtual host even where this machine has hardware virtualisation
    #[arg(long = "virtual")]
    force_virtual: bool,
    /// End the command after this many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The virtual host's memory
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u32,
    /// The virtual host's processors, beside one that runs no commands
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// Let the virtual host's clock count instructions, on one processor: figures that repeat, whatever else runs here
    #[arg(long)]
    count_instructions: bool,
    /// Use a virtual host that has PCI devices to give to guests: NVMe disks, network cards, sound controllers
    #[arg(long)]
    passthrough: bool,
    /// The virtual host's kernel
    #[arg(long, value_enum, value_name = "KERNEL", default_value_t)]
    host_kernel: HostKernel,
    /// A further argument for the virtual host's QEMU (repeatable)
    #[arg(long = "qemu", value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<OsString>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().what {
        What::Setup => setup::everything().map(|()| ExitCode::SUCCESS),
        What::Kernel => setup::own_kernel::build().map(|_| ExitCode::SUCCESS),
        What::Host(arguments) => run_on_host(arguments),
        What::Demo { quick: false } => demo::run(),
        What::Demo { quick: true } => demo::run_quick(),
        What::Demonstrate { quick: false } => demo::show_deployment(),
        What::Demonstrate { quick: true } => demo::show_pod(),
        What::Cluster { command } => cluster::run(&command),
        What::InCluster { command } => cluster::run_inside(&command),
        What::Worker { files } => cluster::worker::run(&cluster::Files::at(&files)),
        What::Package { file } => package::run(file),
        What::Bench(measurement) => measurement.run(),
        What::Test {
            only,
            full,
            all,
            containerd,
            sandboxer,
            host_kernel,
        } => {
            let telling = if full {
                Telling::full()
            } else {
                Telling::default()
            };
            let telling = telling.of_all(all).on(host_kernel);
            telling
                .with(containerd, sandboxer)
                .and_then(|telling| stories::test(&only, &telling))
        }
        What::Soak {
            minutes,
            seed,
            host_kernel,
        } => stories::soak(minutes, seed, host_kernel),
        What::Stories { programs, only } => stories::tell(&programs, &only),
        What::Inside => host::inside::main(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("testbed: {error:#}");
        ExitCode::from(host::EXIT_HOST_FAILED)
    })
}

fn run_on_host(arguments: HostArguments) -> anyhow::Result<ExitCode> {
    let machine = host::Machine {
        force_virtual: arguments.force_virtual,
        memory_mib: arguments.memory,
        cpus: arguments.cpus,
        counts_instructions: arguments.count_instructions,
        passthrough: arguments.passthrough,
        kernel: arguments.host_kernel,
        qemu: arguments.qemu,
    };
    let limit = arguments.timeout.map(Duration::from_secs);
    let outcome = host::run(&machine, &arguments.command, limit)?;
    if let Some(message) = outcome.message() {
        progress::step(format!("testbed: {message}"));
    }
    Ok(ExitCode::from(outcome.exit_status()))
}
