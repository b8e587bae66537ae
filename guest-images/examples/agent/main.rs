//! Talks to the agent of a running guest, without a shim: for trying things out.
//!
//! The guest's share must hold `<BUNDLE>/rootfs`. For example, with a guest whose vsock is backed by /tmp/vm.sock:
//!
//!     cargo run --example agent -- --vsock /tmp/vm.sock info
//!     cargo run --example agent -- --vsock /tmp/vm.sock run busybox -- sh -c 'uname -r; exit 7'
//!     cargo run --example agent -- --vsock /tmp/vm.sock shutdown

mod connection;
mod spec;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use orlop_proto::agent::CONTROL_PORT;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::agent::v1::{
    CreateRequest, DeleteRequest, InfoRequest, ShutdownRequest, StartRequest, Stdio, Stream,
    WaitRequest,
};
use tokio::io::{AsyncWriteExt as _, copy};

use self::connection::Guest;

/// Talks to the agent of a running guest.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    guest: GuestArguments,
    #[command(subcommand)]
    what: What,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct GuestArguments {
    /// The unix socket that backs the guest's vsock
    #[arg(long, value_name = "SOCKET")]
    vsock: Option<std::path::PathBuf>,
    /// The guest's context id, where the host's kernel has its vsock (vhost)
    #[arg(long)]
    cid: Option<u32>,
}

#[derive(Subcommand)]
enum What {
    /// Print who the guest is, and when it reached which phase
    Info,
    /// Run a command in a new container with this process's standard streams
    Run {
        /// The bundle's directory in the share
        bundle: String,
        /// The container's name
        #[arg(long, default_value = "example")]
        name: String,
        /// Give it a terminal
        #[arg(long, short)]
        tty: bool,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Power the guest off
    Shutdown,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let guest = match (arguments.guest.vsock, arguments.guest.cid) {
        (Some(socket), _) => Guest::Unix(socket),
        (None, cid) => Guest::Vhost(cid.unwrap_or_default()),
    };
    match run(&guest, arguments.what).await {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("agent: {error:#}");
            ExitCode::from(125)
        }
    }
}

async fn run(guest: &Guest, what: What) -> anyhow::Result<u8> {
    let channel = guest.channel(CONTROL_PORT).await?;
    let mut agent = AgentClient::new(channel);
    match what {
        What::Info => {
            let info = agent.info(InfoRequest {}).await?.into_inner();
            println!("agent {}, kernel {}", info.version, info.kernel_release);
            for phase in info.phases {
                println!("{:>9} {} us", phase.name, phase.boottime_ns / 1000);
            }
            Ok(0)
        }
        What::Run {
            bundle,
            name,
            tty,
            command,
        } => {
            let create = CreateRequest {
                container: name.clone(),
                bundle,
                root_disk: String::new(),
                disks: Vec::new(),
                pci_devices: Vec::new(),
                volumes: Vec::new(),
                spec: spec::container(&command, tty).into_bytes(),
                stdio: Some(Stdio {
                    stdin: true,
                    stdout: true,
                    stderr: true,
                }),
            };
            agent.create(create).await?;
            let status = attend(guest, &mut agent, &name, tty).await;
            let delete = DeleteRequest {
                container: name,
                exec: String::new(),
            };
            agent.delete(delete).await?;
            status
        }
        What::Shutdown => {
            // The guest may be gone before it has answered.
            if let Err(status) = agent.shutdown(ShutdownRequest {}).await {
                eprintln!("agent: {status}");
            }
            Ok(0)
        }
    }
}

/// Moves a container's streams, starts it, and waits for it.
async fn attend(
    guest: &Guest,
    agent: &mut AgentClient<tonic::transport::Channel>,
    name: &str,
    tty: bool,
) -> anyhow::Result<u8> {
    let mut stdin = guest.stream(name, Stream::Stdin).await?;
    let mut stdout = guest.stream(name, Stream::Stdout).await?;
    let input = tokio::spawn(async move {
        copy(&mut tokio::io::stdin(), &mut stdin).await?;
        stdin.shutdown().await?;
        // To close it now might cut off what is on its way.
        copy(&mut stdin, &mut tokio::io::sink()).await
    });
    let output = tokio::spawn(async move { copy(&mut stdout, &mut tokio::io::stdout()).await });
    let errors = if tty {
        None
    } else {
        let mut stderr = guest.stream(name, Stream::Stderr).await?;
        Some(tokio::spawn(async move {
            copy(&mut stderr, &mut tokio::io::stderr()).await
        }))
    };
    let start = StartRequest {
        container: name.to_owned(),
        exec: String::new(),
    };
    agent.start(start).await?;
    let wait = WaitRequest {
        container: name.to_owned(),
        exec: String::new(),
    };
    let exit = agent.wait(wait).await?.into_inner();
    input.abort();
    output.await?.context("stdout")?;
    if let Some(errors) = errors {
        errors.await?.context("stderr")?;
    }
    tokio::io::stdout().flush().await?;
    match u8::try_from(exit.exit_status) {
        Ok(status) => Ok(status),
        Err(_) => bail!("the agent says that it exited with {}", exit.exit_status),
    }
}
