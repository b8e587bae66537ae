//! `orlop console`: a VM's console on this terminal, for as long as its user likes.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::thread;

use clap::Args;
use orlop_proto::vmm::v1::{ConsoleInput, ConsoleOutput};
use orlop_vmm::terminal::{self, End, Keys, Raw};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{self, Target, answer, said};

/// What `orlop console --help` ends with.
pub const AFTER_HELP: &str = "\
Ctrl-A d leaves the console; the VM goes on. Ctrl-A Ctrl-A is a Ctrl-A for the guest. Where standard input is no terminal, its end
does not end this command: the VM's end does.

Examples:
  orlop console web
  echo 'systemctl poweroff' | orlop console web";

/// What leaves the console behind Ctrl-A.
const LEAVE: u8 = b'd';

/// The flags of `orlop console`.
#[derive(Args)]
pub struct Arguments {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
}

/// Attaches to a VM's console.
///
/// # Errors
/// When the VM does not run, or there is no terminal to be had.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let target = &arguments.vm;
    let runtime = client::runtime()?;
    let done = runtime.block_on(async {
        let mut vm = target.connect().await?;
        let (keys, typed) = mpsc::channel(1);
        let output = answer(target, vm.client.console(ReceiverStream::new(typed))).await?;
        let raw = io::stdin().is_terminal().then(Raw::enter).transpose()?;
        if raw.is_some() {
            eprintln!("orlop: this is the console of {target}; Ctrl-A d leaves it");
        }
        let left = read_keys(keys, raw.is_some())?;
        tokio::select! {
            shown = show(target, output) => shown,
            Ok(()) = left => Ok(()),
        }
    });
    // The thread that reads standard input may do so for ever.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

/// Prints what the guest writes until there is no more of it.
async fn show(target: &Target, mut output: Streaming<ConsoleOutput>) -> anyhow::Result<()> {
    loop {
        match output.message().await {
            Ok(Some(ConsoleOutput { data, missed })) => {
                if missed > 0 {
                    eprintln!("orlop: some output of the guest is missing here");
                }
                let mut stdout = io::stdout().lock();
                stdout.write_all(&data)?;
                stdout.flush()?;
            }
            Ok(None) => return Ok(()),
            // A VM that ends closes the connection, too.
            Err(status) if client::is_end(&status) => return Ok(()),
            Err(status) => return Err(said(target, &status)),
        }
    }
}

/// Sends what is typed, from a thread of its own, and tells when the user leaves.
fn read_keys(
    to: mpsc::Sender<ConsoleInput>,
    interactive: bool,
) -> io::Result<oneshot::Receiver<()>> {
    let (leave, left) = oneshot::channel();
    let keys = interactive.then(|| Keys::leaving_by(LEAVE));
    thread::Builder::new().name("stdin".into()).spawn(move || {
        let end = terminal::read(keys, |data| to.blocking_send(ConsoleInput { data }).is_ok());
        // A terminal that has gone is one that its user has left.
        if interactive || end == End::Left {
            // It fails when the VM has ended meanwhile.
            let _ = leave.send(());
        }
    })?;
    Ok(left)
}
