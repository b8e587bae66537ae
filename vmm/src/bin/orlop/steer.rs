//! `orlop boot`, `pause`, `resume`, `reset`, `stop` and `kill`: a word to one VM or to several.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use orlop_proto::vmm::v1::{
    BootRequest, KillRequest, PauseRequest, ResetRequest, ResumeRequest, ShutdownRequest,
    WaitRequest,
};

use crate::client::{self, Target, Vm, answer, said};
use crate::output;

/// What `orlop stop --help` ends with.
pub const STOP_HELP: &str = "\
Examples:
  orlop stop web
  orlop stop --timeout 1m web db";

/// The VMs that are meant.
#[derive(Args)]
pub struct Arguments {
    /// VMs, by name or by the path of their control socket
    #[arg(required = true, value_name = "VM")]
    vms: Vec<Target>,
}

/// The flags of `orlop stop`.
#[derive(Args)]
pub struct StopArguments {
    #[command(flatten)]
    which: Arguments,
    /// How long a guest may take to power off before its VM is killed, as 30s or 2m
    #[arg(long, short, value_name = "TIME", default_value = "10s")]
    timeout: humantime::Duration,
}

/// A word to a VM.
#[derive(Clone, Copy)]
pub enum Word {
    /// Boot.
    Boot,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Boot again.
    Reset,
    /// End at once.
    Kill,
}

/// Says `word` to each of the VMs, and prints the names of those that have heeded it.
///
/// # Errors
/// When a VM does not run, or refuses.
pub fn say(arguments: &Arguments, word: Word) -> anyhow::Result<ExitCode> {
    each(arguments, async |mut vm: Vm| {
        let target = &vm.target;
        let client = &mut vm.client;
        match word {
            Word::Boot => answer(target, client.boot(BootRequest {})).await.map(drop),
            Word::Pause => answer(target, client.pause(PauseRequest {}))
                .await
                .map(drop),
            Word::Resume => answer(target, client.resume(ResumeRequest {}))
                .await
                .map(drop),
            Word::Reset => answer(target, client.reset(ResetRequest {}))
                .await
                .map(drop),
            Word::Kill => kill(&mut vm).await,
        }
    })
}

/// Has each guest power itself off, and kills those that do not in time.
///
/// # Errors
/// When a VM does not run, or refuses.
pub fn stop(arguments: &StopArguments) -> anyhow::Result<ExitCode> {
    each(&arguments.which, async |mut vm: Vm| {
        match vm.client.shutdown(ShutdownRequest {}).await {
            Err(status) if !client::is_end(&status) => return Err(said(&vm.target, &status)),
            // It may be ending already.
            _ => {}
        }
        match tokio::time::timeout(*arguments.timeout, ended(&mut vm)).await {
            Ok(()) => Ok(()),
            Err(_) => kill(&mut vm).await,
        }
    })
}

/// Ends the VM, and waits until it has.
async fn kill(vm: &mut Vm) -> anyhow::Result<()> {
    match vm.client.kill(KillRequest {}).await {
        Err(status) if !client::is_end(&status) => Err(said(&vm.target, &status)),
        _ => {
            let waited = tokio::time::timeout(client::PATIENCE, ended(vm)).await;
            ensure!(
                waited.is_ok(),
                "VM {} was killed and has not ended; a SIGKILL to its process ends it",
                vm.target
            );
            Ok(())
        }
    }
}

/// Waits for the VM's end: for its answer, or for there being nobody to answer.
async fn ended(vm: &mut Vm) {
    let _ = vm.client.wait(WaitRequest {}).await;
}

/// Does `act` to each VM, one after the other. What fails for one is said, and the others have their turn.
fn each(
    arguments: &Arguments,
    act: impl AsyncFn(Vm) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let runtime = client::runtime()?;
    let mut exit = ExitCode::SUCCESS;
    for target in &arguments.vms {
        let done = runtime.block_on(async { act(target.connect().await?).await });
        match done {
            Ok(()) => output::print(&format!("{target}\n"))?,
            Err(error) => {
                eprintln!("orlop: {error:#}");
                exit = ExitCode::FAILURE;
            }
        }
    }
    Ok(exit)
}
