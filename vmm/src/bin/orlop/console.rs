//! `orlop console`: a VM's console on this terminal, for as long as its user likes.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::thread;

use clap::Args;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use orlop_proto::vmm::v1::{ConsoleInput, ConsoleOutput, ResizeConsoleRequest};
use orlop_vmm::terminal::{self, End, Keys, Raw, Size};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::client::{self, Target, answer, said};

/// What `orlop console --help` ends with.
pub const AFTER_HELP: &str = "\
Ctrl-A d leaves the console; the VM goes on. Ctrl-A Ctrl-A is a Ctrl-A for the guest. Where standard input is no terminal, its end
does not end this command: the VM's end does. A console that is a virtio-console (`orlop run --console-device virtio`) is as large as this
terminal.

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
    let (size, sizes) = mpsc::channel(1);
    if io::stdin().is_terminal() {
        Size::follow(move |now| size.blocking_send(now).is_ok())?;
    }
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
        let followed = follow_size(target, vm.client.clone(), sizes);
        tokio::select! {
            shown = show(target, output) => shown,
            Ok(()) = left => Ok(()),
            Err(error) = followed => Err(error),
        }
    });
    // The thread that reads standard input may do so for ever.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

/// Has the console be as large as this terminal, until it turns out to be one that has no size.
async fn follow_size(
    target: &Target,
    mut client: VmmClient<Channel>,
    mut sizes: mpsc::Receiver<Size>,
) -> anyhow::Result<()> {
    while let Some(Size { columns, rows }) = sizes.recv().await {
        let request = ResizeConsoleRequest {
            width: columns.into(),
            height: rows.into(),
        };
        match client.resize_console(request).await {
            Ok(_) => {}
            Err(status)
                if matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::Unimplemented
                ) =>
            {
                return Ok(());
            }
            // The end of the VM is told by its output.
            Err(status) if client::is_end(&status) => return Ok(()),
            Err(status) => return Err(said(target, &status)),
        }
    }
    Ok(())
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
