//! `orlop-bench`: Orlop's figures, taken on this machine, which has KVM. `cargo testbed bench` builds it and runs it where KVM is.
//!
//! - [`start`]: how fast a VM starts and what it costs, side by side with QEMU's microvm machine;
//! - [`pod`]: where the time from `ctr run` to a container's first output goes.
//!
//! How each figure is taken is in this crate's `README.md`.

mod contender;
mod figures;
mod memory;
mod pod;
mod start;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Takes Orlop's figures on this machine.
#[derive(Parser)]
#[command(name = "orlop-bench", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A VM's start and its memory, beside QEMU's microvm machine
    Start {
        /// How many starts of each are measured
        #[arg(long)]
        runs: u32,
    },
    /// From `ctr run` to the first output, by phase
    Pod {
        /// How many starts are measured
        #[arg(long)]
        runs: u32,
    },
}

fn main() -> ExitCode {
    let measured = match Arguments::parse().what {
        What::Start { runs } => start::measure(runs),
        What::Pod { runs } => pod::measure(runs),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
