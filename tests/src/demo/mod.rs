//! `cargo testbed demo`: pods in KVM guests, from nothing, for people who see Orlop for the first time.

mod deployment;
mod pod;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Programs, namespaces};
use crate::host::{self, Machine};
use crate::progress::step;
use crate::setup;
pub use deployment::show as show_deployment;
pub use pod::show_pod;

/// Longer than a pod takes on two slow processors.
const POD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Sets this machine up and shows a Deployment in a Kubernetes cluster, whose node is where KVM is.
///
/// # Errors
/// When something cannot be installed, built or started.
pub fn run() -> Result<ExitCode> {
    setup::everything()?;
    Programs::get()?;
    say_where();
    namespaces::enter(&["demonstrate"])
}

/// The quick one: sets this machine up and shows a pod through containerd alone.
///
/// # Errors
/// When something cannot be installed, built or started.
pub fn run_quick() -> Result<ExitCode> {
    setup::everything()?;
    say_where();
    let command = [
        crate::own::program()?.into_os_string(),
        "demonstrate".into(),
        "--quick".into(),
    ];
    let outcome = host::run(&Machine::default(), &command, Some(POD_LIMIT))?;
    if let Some(message) = outcome.message() {
        step(message);
    }
    Ok(ExitCode::from(outcome.exit_status()))
}

fn say_where() {
    step(if host::kvm::is_hardware() {
        "this machine has hardware virtualisation: pods run on it"
    } else {
        "this machine has no hardware virtualisation: pods run in a virtual host that has"
    });
}
