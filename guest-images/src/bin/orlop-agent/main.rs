//! The agent: the first process of an Orlop guest, and the program behind its containers.
//!
//! One binary, three ways to run:
//!
//! - as PID 1 it makes the guest ([`init`]), serves `orlop.agent.v1` over vsock ([`serve`]), and ends with the guest;
//! - `orlop-agent runtime REQUEST` is what it starts of itself for every container and every further process in one
//!   ([`runtime`]): libcontainer forks, which is undefined behaviour in a process that has threads;
//! - `orlop-agent serve DIRECTORY` serves the same on unix sockets, outside of a guest, for tests.
//!
//! The rooms: [`service`] is the gRPC skin over [`container`], which knows the containers and their processes; [`stdio`] moves
//! their input and output; [`reaper`] knows who has exited; [`cgroup`] reads and writes a container's control group; [`files`] has the kernel forget files; [`network`]
//! sets the guest's interfaces up; [`forward`] lets the host reach the guest's loopback; [`seccomp`] makes filters of system calls.

mod cgroup;
mod console;
mod container;
mod error;
mod files;
mod forward;
mod heap;
mod ids;
mod init;
mod listen;
mod network;
mod reaper;
mod runtime;
mod seccomp;
mod serve;
mod service;
mod stdio;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    match arguments.as_slice() {
        [mode, request] if *mode == "runtime" => runtime::main(request),
        [mode, directory] if *mode == "serve" => match serve::on_unix(Path::new(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("orlop-agent: {error:#}");
                ExitCode::FAILURE
            }
        },
        // The kernel hands what it does not know of its command line to its first process.
        _ if std::process::id() == 1 => init::main(),
        _ => {
            eprintln!(
                "orlop-agent: this is the first process of an Orlop guest; outside of one, use: orlop-agent serve DIRECTORY"
            );
            ExitCode::from(2)
        }
    }
}
