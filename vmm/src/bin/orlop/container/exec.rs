//! `orlop exec`: another command in the container of a VM that `orlop run --image` runs.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use orlop_proto::agent::CONTROL_PORT;
use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::agent::v1::{DeleteRequest, ExecRequest};
use orlop_proto::connect;
use orlop_vmm::config::VmName;
use orlop_vmm::state::StateDirectory;
use serde_json::Value;

use super::session::{self, Session};
use super::{CONTAINER, finish, spec};
use crate::client;

/// What `orlop exec --help` ends with.
pub const AFTER_HELP: &str = "\
The command has the environment, the user and the directory of the container's own. The exit status is the command's, and otherwise as that
of `orlop run --image`.

Example:
  orlop exec -it web sh";

/// The flags of `orlop exec`.
#[derive(Args)]
pub struct Arguments {
    /// Give the command our standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// The VM's name
    name: VmName,
    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The container's process, kept beside the VM's socket for those that follow.
#[derive(Clone)]
pub struct Process {
    path: PathBuf,
    process: Value,
}

impl Process {
    /// That of a container's spec.
    ///
    /// # Errors
    /// When it has none.
    pub fn of(spec: &Value, name: &VmName) -> anyhow::Result<Self> {
        Ok(Self {
            path: place(name),
            process: spec.get("process").context("a process")?.clone(),
        })
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        let write = fs::write(&self.path, self.process.to_string());
        write.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Forgets it.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The socket of the VM's vsock.
pub fn vsock(name: &VmName) -> PathBuf {
    StateDirectory::of_user()
        .path()
        .join(format!("{}.vsock", name.as_str()))
}

fn place(name: &VmName) -> PathBuf {
    StateDirectory::of_user()
        .path()
        .join(format!("{}.process", name.as_str()))
}

/// Runs a command in a container to its end.
pub fn run(arguments: Arguments) -> ExitCode {
    finish(try_run(arguments))
}

fn try_run(arguments: Arguments) -> anyhow::Result<u8> {
    let Ok(text) = fs::read(place(&arguments.name)) else {
        bail!(
            "no VM {} runs an image: `orlop ps` lists those that run",
            arguments.name.as_str()
        );
    };
    let mut process: Value =
        serde_json::from_slice(&text).context("what is kept of the container")?;
    let fields = process
        .as_object_mut()
        .context("what is kept of the container")?;
    fields.insert("args".into(), arguments.command.into());
    fields.insert("terminal".into(), arguments.tty.into());
    fields.insert("consoleSize".into(), spec::console_size(arguments.tty));
    let vsock = vsock(&arguments.name);
    let id = format!("exec-{}", std::process::id());
    let news = session::listen(arguments.tty)?;
    let session = Session {
        vsock: &vsock,
        container: CONTAINER,
        exec: &id,
        interactive: arguments.interactive,
        tty: arguments.tty,
    };
    let runtime = client::runtime()?;
    let status = runtime.block_on(async {
        let channel = connect::vsock(vsock.clone(), CONTROL_PORT).await;
        let mut agent = AgentClient::new(
            channel.with_context(|| format!("VM {} does not answer", arguments.name.as_str()))?,
        );
        let request = ExecRequest {
            container: CONTAINER.into(),
            exec: id.clone(),
            process: serde_json::to_vec(&process)?,
            stdio: Some(session.stdio()),
        };
        agent.exec(request).await?;
        let status = session.attend(agent.clone(), news).await;
        let delete = DeleteRequest {
            container: CONTAINER.into(),
            exec: id.clone(),
        };
        // It goes with its container in any case.
        let _ = agent.delete(delete).await;
        status
    });
    runtime.shutdown_background();
    status
}
