//! `orlop-bench`: Orlop's figures, taken on this machine, which has KVM. `cargo testbed bench` builds it and runs it where KVM is.
//!
//! - [`density`]: what many VMs on one host cost, side by side with QEMU's microvm machine;
//! - [`devices`]: how fast a guest's devices are, side by side with QEMU's machines;
//! - [`image`]: how soon a command of a container image says something, side by side with runc and a VM of QEMU's;
//! - [`requests`]: what a request to a disk or a card costs in exits and time, side by side with QEMU's machines;
//! - [`start`]: how fast a VM starts and what it costs, side by side with QEMU's microvm machine;
//! - [`pod`]: where the time from `ctr run` to a container's first output goes;
//! - [`pods`]: what pods take and hold, side by side with runc and crun.
//!
//! How each figure is taken is in this crate's `README.md`.

mod budgets;
mod contender;
mod counts;
mod density;
mod devices;
mod figures;
mod group;
mod held;
mod image;
mod payload;
mod plot;
mod pod;
mod pods;
mod requests;
mod start;
mod trace;
mod workplace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use devices::loads::Kind;

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
        /// Measure Orlop alone, and fail where it exceeds its budget
        #[arg(long, conflicts_with = "plot")]
        check: bool,
        /// Draw how far Orlop is ahead, as an SVG file
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// What many VMs on one host cost, beside QEMU's microvm machine
    Density {
        /// How often each is measured
        #[arg(long)]
        runs: u32,
        /// Draw how far Orlop is ahead, as an SVG file
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// A guest's devices, beside QEMU's machines
    Devices {
        /// How many guests of each are measured
        #[arg(long)]
        runs: u32,
        /// The kinds of devices; all of them if none is named
        #[arg(long, value_delimiter = ',')]
        only: Vec<Kind>,
        /// Draw how far Orlop is ahead, as an SVG file
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// `orlop run --image` to its command's first output, beside `runc run` and a VM of QEMU's
    Image {
        /// How many runs of each are measured
        #[arg(long)]
        runs: u32,
    },
    /// From `ctr run` to the first output, by phase
    Pod {
        /// How many starts are measured
        #[arg(long)]
        runs: u32,
    },
    /// What pods take and hold, beside runc and crun
    Pods {
        /// How often each is measured
        #[arg(long)]
        runs: u32,
    },
    /// What a request to a guest's disk or card costs, beside QEMU's machines
    Requests {
        /// How many guests of each are measured
        #[arg(long)]
        runs: u32,
        /// The loads that have these in their names, as `net` or `reads`; all of them if none is named
        #[arg(long, value_delimiter = ',', value_name = "WORDS")]
        only: Vec<String>,
    },
}

fn main() -> ExitCode {
    let measured = match Arguments::parse().what {
        What::Start {
            runs,
            check: false,
            plot,
        } => start::measure(runs, plot.as_deref()),
        What::Start {
            runs, check: true, ..
        } => start::check(runs),
        What::Density { runs, plot } => density::measure(runs, plot.as_deref()),
        What::Devices { runs, only, plot } => devices::measure(runs, &only, plot.as_deref()),
        What::Image { runs } => image::measure(runs),
        What::Pod { runs } => pod::measure(runs),
        What::Pods { runs } => pods::measure(runs),
        What::Requests { runs, only } => requests::measure(runs, &only),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
