//! `orlop`: the VMM's command line. One process is one VM.

mod doctor;
mod logger;
mod output;
mod ps;
mod run;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

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
    /// List the VMs that run
    #[command(after_help = ps::AFTER_HELP)]
    Ps(ps::Arguments),
    /// Check what this machine has and lacks for Orlop
    Doctor(doctor::Arguments),
    /// Print what a shell needs to complete orlop's commands and flags
    #[command(after_help = "Example:\n  orlop completions bash >/etc/bash_completion.d/orlop")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    logger::install();
    // What is wrong with the arguments is said by clap, which ends the process with status 2.
    let result = match Arguments::parse().what {
        What::Run(arguments) => run::run(*arguments),
        What::Ps(arguments) => ps::run(&arguments),
        What::Doctor(arguments) => doctor::run(&arguments),
        What::Completions { shell } => completions(shell),
    };
    result.unwrap_or_else(|error| {
        // One line, whatever the causes have in them.
        eprintln!("orlop: {}", format!("{error:#}").replace('\n', " "));
        ExitCode::FAILURE
    })
}

/// Prints the completions: all at once, for a reader that has gone is an error here and a panic in clap_complete.
fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "orlop", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }
}
