//! The containerd shim of Orlop: `io.containerd.orlop.v2`, a pod is a VM.
//!
//! containerd runs this program in three ways, and so this file is only the fork in the road:
//!
//! - `start` finds or makes the process that serves a pod, prints its address and ends ([`start`]);
//! - that process, which `start` re-executes as `serve`, is the one that lives as long as the pod ([`serve`]);
//! - `delete` cleans up after a pod of which nothing may be alive any more ([`delete`]).
//!
//! The rooms: [`task`] answers containerd's calls and holds the containers and their processes; [`sandbox`] is the
//! pod's VM and what it takes on this machine; [`spec`] turns a host's OCI spec into a guest's; [`volumes`] are those that the guest is given copies of; [`io`] moves
//! standard input and output; [`network`] joins the pod's network to the VM's cards; [`cgroup`] is where the pod's processes are counted; [`mounts`] and [`process`] are the
//! system calls underneath.

mod address;
mod bundle;
mod cgroup;
mod cli;
mod codes;
mod config;
mod delete;
mod events;
mod features;
mod io;
mod logging;
mod memory_size;
mod mounts;
mod network;
mod options;
mod process;
mod sandbox;
mod serve;
mod spec;
mod start;
mod stats;
mod task;
mod volumes;

use std::process::ExitCode;

use cli::{Action, Cli};

fn main() -> ExitCode {
    let cli = match Cli::parse(std::env::args().skip(1)) {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("containerd-shim-orlop-v2: {error}");
            return ExitCode::from(2);
        }
    };
    let done = match cli.action {
        Action::Start => start::run(&cli),
        Action::Serve => serve::run(&cli),
        Action::Delete => delete::run(&cli),
        Action::Version => {
            println!("containerd-shim-orlop-v2 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Info => cli::print_info(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what a failed command printed: one line, causes included.
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
