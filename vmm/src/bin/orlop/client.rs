//! A VM that runs, as the commands reach it: by its name, by the id of the pod that it is, or by its control socket.

use std::convert::Infallible;
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::pods::{self, ShortPath};
use anyhow::{Context as _, anyhow, bail};
use orlop_proto::connect;
use orlop_proto::files::Files;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use orlop_proto::vmm::v1::{Operation, WaitOperationRequest};
use orlop_vmm::config::VmName;
use orlop_vmm::state::StateDirectory;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// How long a VM may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How a user tells a VM: by its name, by the beginning of a pod's id, or by the path of its control socket, which has a slash in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(String);

impl FromStr for Target {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Target(text.into()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A VM that was reached.
pub struct Vm {
    /// How its user calls it.
    pub target: Target,
    /// Its control socket.
    pub socket: PathBuf,
    /// Its control interface.
    pub client: VmmClient<Channel>,
    /// What is handed over with the next call.
    pub files: Files,
}

impl Target {
    /// Where its control socket is.
    fn socket(&self) -> anyhow::Result<PathBuf> {
        if self.0.contains('/') {
            return Ok(PathBuf::from(&self.0));
        }
        let name: VmName = self.0.parse()?;
        let socket = StateDirectory::of_user().socket(&name);
        if socket.exists() {
            return Ok(socket);
        }
        Ok(pods::named(&self.0, pods::all()).map_or(socket, |pod| pod.socket))
    }

    /// Connects to it.
    ///
    /// # Errors
    /// When no such VM runs.
    pub async fn connect(&self) -> anyhow::Result<Vm> {
        let socket = self.socket()?;
        let short = ShortPath::of(&socket).map_err(|_| self.is_absent())?;
        self.is_served(&short.path)?;
        let (channel, files) = connect::unix_with_files(&short.path)
            .await
            .with_context(|| format!("cannot speak with VM {self}"))?;
        Ok(Vm {
            target: self.clone(),
            socket,
            client: VmmClient::new(channel),
            files,
        })
    }

    /// Tells a VM that is not there from one that cannot be reached, which the connection's own errors do not.
    fn is_served(&self, socket: &Path) -> anyhow::Result<()> {
        match UnixStream::connect(socket) {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                Err(self.is_absent())
            }
            Err(error) => Err(error).with_context(|| format!("cannot connect to VM {self}")),
        }
    }
}

impl Target {
    fn is_absent(&self) -> anyhow::Error {
        anyhow!("no VM {self} runs; `orlop ps` lists those that do")
    }
}

/// The VM has ended before it could answer.
#[derive(Debug, thiserror::Error)]
#[error("VM {0} has ended")]
pub struct Ended(Target);

/// What a VM answers, if it does so in time.
///
/// # Errors
/// What it refuses, in its own words; or that it is silent.
pub async fn answer<T>(
    target: &Target,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer.map_err(|status| said(target, &status))?.into_inner()),
        Err(_) => bail!(
            "VM {target} does not answer within {} s; `orlop kill`, or else a SIGKILL to its process, ends it",
            PATIENCE.as_secs()
        ),
    }
}

/// Waits until an operation is done. The VM itself says when it has waited long enough.
///
/// # Errors
/// When it is not done in time, or will not be any more.
pub async fn done(
    target: &Target,
    client: &mut VmmClient<Channel>,
    operation: Operation,
) -> anyhow::Result<()> {
    let request = WaitOperationRequest { id: operation.id };
    match client.wait_operation(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(said(target, &status)),
    }
}

/// A time limit as the API has it, where 0 would stand for the default.
///
/// # Errors
/// When it is longer than can be said.
pub fn milliseconds(limit: humantime::Duration) -> anyhow::Result<u32> {
    let ms = u32::try_from(limit.as_millis());
    Ok(ms
        .with_context(|| format!("--timeout {limit} is too long"))?
        .max(1))
}

/// A refusal as a line for people.
pub fn said(target: &Target, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::DeadlineExceeded => anyhow!("VM {target}: {}", status.message()),
        // The connection broke off: only the VM's end does that.
        _ if is_end(status) => Ended(target.clone()).into(),
        code => anyhow!("VM {target}: {} ({code})", status.message()),
    }
}

/// Whether the call found a VM that was ending.
pub fn is_end(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    )
}

/// What the commands wait in.
///
/// # Errors
/// When the system has no epoll to give.
pub fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_not() {
        let socket = |text: &str| text.parse::<Target>().unwrap().socket();
        assert_eq!(socket("./vm.sock").unwrap(), Path::new("./vm.sock"));
        assert!(socket("web").unwrap().ends_with("orlop/vm/web.sock"));
        assert!(socket("-x").is_err());
    }

    #[test]
    fn a_vm_that_does_not_run_is_said_so() {
        let target: Target = "/nonexistent/vm.sock".parse().unwrap();
        let error = runtime().unwrap().block_on(target.connect());
        let error = error.err().unwrap().to_string();
        assert!(error.contains("orlop ps"), "{error}");
    }
}
