//! `orlop`: the VMM's command line. One process is one VM.

mod client;
mod console;
mod container;
mod detach;
mod devices;
mod doctor;
mod events;
mod guest_files;
mod image;
mod inspect;
mod logger;
mod output;
mod pci;
mod pods;
mod ps;
mod resize;
mod resources;
mod run;
mod stats;
mod steer;
mod virtiofsd;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::steer::Word;

/// Runs virtual machines, steers them, and says what a machine needs for that.
#[derive(Parser)]
#[command(name = "orlop", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run a VM until it ends
    #[command(after_help = run::AFTER_HELP)]
    Run(Box<run::Arguments>),
    /// Run another command in the container of `orlop run --image`
    #[command(after_help = container::exec::AFTER_HELP)]
    Exec(container::exec::Arguments),
    /// Keep images, list them, remove them
    Image(image::Arguments),
    /// List the VMs that run
    #[command(after_help = ps::AFTER_HELP)]
    Ps(ps::Arguments),
    /// Show what a VM is and how it does
    #[command(after_help = inspect::AFTER_HELP)]
    Inspect(inspect::Arguments),
    /// Use a VM's console
    #[command(after_help = console::AFTER_HELP)]
    Console(console::Arguments),
    /// Have VMs boot that were made by `orlop run --no-boot`
    Boot(steer::Arguments),
    /// Stop VMs' processors until they are resumed
    Pause(steer::Arguments),
    /// Let paused VMs go on
    Resume(steer::Arguments),
    /// Have VMs boot again, whatever they do
    Reset(steer::Arguments),
    /// Press VMs' power button, and kill those that are not off in time
    #[command(after_help = steer::STOP_HELP)]
    Stop(steer::StopArguments),
    /// End VMs at once
    Kill(steer::Arguments),
    /// Give a VM another disk while it runs
    #[command(after_help = devices::ADD_DISK_HELP)]
    AddDisk(devices::AddDisk),
    /// Give a VM another network card while it runs
    #[command(after_help = devices::ADD_NET_HELP)]
    AddNet(devices::AddNet),
    /// Give a VM another shared directory while it runs
    #[command(after_help = devices::ADD_FS_HELP)]
    AddFs(devices::AddFs),
    /// Give a VM a PCI device of the host's while it runs
    #[command(after_help = devices::ADD_DEVICE_HELP)]
    AddDevice(devices::AddDevice),
    /// Have a VM's guest let go of a device
    #[command(after_help = devices::REMOVE_HELP)]
    RemoveDevice(devices::Remove),
    /// Give a VM other numbers of processors and bytes while it runs
    #[command(after_help = resize::AFTER_HELP)]
    Resize(resize::Arguments),
    /// Have a VM's guest give up memory, or give it back
    #[command(after_help = devices::BALLOON_HELP)]
    Balloon(devices::Balloon),
    /// Show what a VM's processors and devices do, as they do it
    #[command(after_help = stats::AFTER_HELP)]
    Stats(stats::Arguments),
    /// Show what happens to a VM, as it happens
    #[command(after_help = events::AFTER_HELP)]
    Events(events::Arguments),
    /// List the host's PCI devices, and give them to guests or back
    #[command(after_help = pci::AFTER_HELP)]
    Pci(pci::Arguments),
    /// Check what this machine has and lacks for Orlop
    Doctor(doctor::Arguments),
    /// Print what a shell needs to complete orlop's commands and flags
    #[command(after_help = "Example:\n  orlop completions bash >/etc/bash_completion.d/orlop")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `orlop run` alone. To know of the other commands takes a quarter of the program's instructions until the kernel is opened.
#[derive(Parser)]
#[command(name = "orlop", version)]
struct Start {
    #[command(subcommand)]
    what: OnlyRun,
}

#[derive(Subcommand)]
enum OnlyRun {
    /// Run a VM until it ends
    #[command(after_help = run::AFTER_HELP)]
    Run(Box<run::Arguments>),
}

/// What is asked for. What is wrong with the arguments is said by clap, which ends the process with status 2.
fn asked() -> What {
    if std::env::args_os().nth(1).is_some_and(|word| word == "run") {
        let OnlyRun::Run(arguments) = Start::parse().what;
        return What::Run(arguments);
    }
    Arguments::parse().what
}

fn main() -> ExitCode {
    logger::install();
    let result = match asked() {
        What::Run(arguments) if arguments.container.image.is_some() => {
            Ok(container::run(*arguments))
        }
        What::Run(arguments) => run::run(*arguments),
        What::Exec(arguments) => Ok(container::exec::run(arguments)),
        What::Image(arguments) => image::run(arguments),
        What::Ps(arguments) => ps::run(&arguments),
        What::Inspect(arguments) => inspect::run(&arguments),
        What::Console(arguments) => console::run(&arguments),
        What::Boot(arguments) => steer::say(&arguments, Word::Boot),
        What::Pause(arguments) => steer::say(&arguments, Word::Pause),
        What::Resume(arguments) => steer::say(&arguments, Word::Resume),
        What::Reset(arguments) => steer::say(&arguments, Word::Reset),
        What::Kill(arguments) => steer::say(&arguments, Word::Kill),
        What::Stop(arguments) => steer::stop(&arguments),
        What::AddDisk(arguments) => devices::add_disk(&arguments),
        What::AddNet(arguments) => devices::add_net(&arguments),
        What::AddFs(arguments) => devices::add_fs(&arguments),
        What::AddDevice(arguments) => devices::add_device(&arguments),
        What::RemoveDevice(arguments) => devices::remove(&arguments),
        What::Resize(arguments) => resize::run(&arguments),
        What::Balloon(arguments) => devices::balloon(&arguments),
        What::Stats(arguments) => stats::run(&arguments),
        What::Events(arguments) => events::run(&arguments),
        What::Pci(arguments) => pci::run(&arguments),
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

    #[test]
    fn run_is_the_same_without_the_other_commands() {
        let help = |mut all: clap::Command| {
            all.build();
            let run = all.find_subcommand_mut("run").unwrap();
            run.render_long_help().to_string()
        };
        assert_eq!(help(Start::command()), help(Arguments::command()));
    }
}
