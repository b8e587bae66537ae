//! `orlop`: the VMM's command line. One process is one VM.

mod doctor;
mod logger;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs virtual machines, and says what a machine needs for that.
#[derive(Parser)]
#[command(name = "orlop", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run a VM in the foreground until it ends
    #[command(after_help = run::AFTER_HELP)]
    Run(Box<run::Arguments>),
    /// Check what this machine has and lacks for Orlop
    Doctor(doctor::Arguments),
}

fn main() -> ExitCode {
    logger::install();
    // What is wrong with the arguments is said by clap, which ends the process with status 2.
    let result = match Arguments::parse().what {
        What::Run(arguments) => run::run(*arguments),
        What::Doctor(arguments) => doctor::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        // One line, whatever the causes have in them.
        eprintln!("orlop: {}", format!("{error:#}").replace('\n', " "));
        ExitCode::FAILURE
    })
}
