//! A VM that runs, with a connection to the agent in its guest.
//!
//! The programs of a VM belong to one task that waits for their end ([`watch`]). Everybody else holds a [`Vm`], by which
//! they call the agent, ask for the end, and hear of it. A call to the agent never outlasts the VM.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_proto::agent::v1::ShutdownRequest;
use orlop_proto::agent::v1::agent_client::AgentClient;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::boot::describe;
use super::disks::Disks;
use super::keep::Keeper;
use super::output::Output;
use super::shape::Shape;
use crate::codes::{Failure, Outcome};
use crate::process::spawn::Running;

/// How long a guest may take to power off before it is killed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a program may take to end after SIGKILL, and virtiofsd after the VMM.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the VMM may take to end after virtiofsd has, if it ends for a reason of its own.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long after a connection to the guest has broken the end of its VM may become known: both programs have ended by then.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(4);

/// The processes that make up a VM, and what they print.
pub(super) struct Programs {
    pub vmm: Running,
    pub virtiofsd: Running,
    pub vmm_output: Output,
    pub console: Output,
    pub fs_output: Output,
}

impl Programs {
    /// Kills and reaps both.
    pub(super) async fn kill(&mut self) {
        self.vmm.kill();
        self.virtiofsd.kill();
        let both = async {
            let _ = self.vmm.wait().await;
            let _ = self.virtiofsd.wait().await;
        };
        if tokio::time::timeout(END_TIMEOUT, both).await.is_err() {
            log::error!("the VMM or virtiofsd does not end after SIGKILL");
        }
    }

    /// Why the VMM ended, if it did: after virtiofsd has. Each of the two ends when the other does, and which is noticed
    /// first is chance; the VMM's words tell more.
    pub(super) async fn why_vmm_ended_too(&mut self) -> Option<String> {
        let status = tokio::time::timeout(LAST_WORDS, self.vmm.wait())
            .await
            .ok()?;
        Some(self.why_vmm_ended(status).await)
    }

    /// Why the VMM ended: the last `orlop: …` line that it printed, else its status in words; of a guest that crashed its last word as well.
    pub(super) async fn why_vmm_ended(&mut self, status: io::Result<ExitStatus>) -> String {
        self.vmm_output.finish().await;
        self.console.finish().await;
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        if let Some(line) = self.vmm_output.last_error() {
            return match (code, self.console.last_line()) {
                // The guest's kernel knows more of that than the VMM does.
                (Some(4 | 5), Some(word)) => format!("{line}; last on its console: {word}"),
                _ => line,
            };
        }
        let what = match code {
            Some(0) => "the guest powered itself off".to_owned(),
            Some(3) => "the guest reset itself".to_owned(),
            Some(4) => "the guest took a fault that it could not handle".to_owned(),
            Some(5) => "the guest's kernel panicked".to_owned(),
            _ => format!("the VMM ended, {}", describe(status)),
        };
        match (self.vmm_output.last_line(), self.console.last_line()) {
            (Some(line), _) => format!("{what}; it said: {line}"),
            (None, Some(line)) => format!("{what}; last on its console: {line}"),
            (None, None) => what,
        }
    }
}

/// A running VM. When the last one who holds it lets go, it is killed.
pub struct Vm {
    pid: u32,
    vsock: PathBuf,
    agent: AgentClient<Channel>,
    ended: watch::Receiver<Option<String>>,
    kill: Arc<Notify>,
    asked_to_end: Arc<AtomicBool>,
    shape: tokio::sync::Mutex<Shape>,
    disks: tokio::sync::Mutex<Disks>,
}

impl Vm {
    pub(super) fn new(
        programs: Programs,
        agent: AgentClient<Channel>,
        vsock: PathBuf,
        shape: Shape,
        keeper: Keeper,
    ) -> Self {
        let pid = programs.vmm.identity().pid;
        let kill = Arc::new(Notify::new());
        let (end, ended) = watch::channel(None);
        let asked_to_end = Arc::new(AtomicBool::new(false));
        let keeper = (keeper, asked_to_end.clone());
        tokio::spawn(watch(programs, kill.clone(), end, keeper));
        Self {
            pid,
            vsock,
            agent,
            ended,
            kill,
            asked_to_end,
            shape: tokio::sync::Mutex::new(shape),
            disks: tokio::sync::Mutex::default(),
        }
    }

    /// The VMM's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The socket behind which the guest's vsock ports are.
    pub fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// How large it is. One at a time changes that.
    pub(super) async fn shape(&self) -> tokio::sync::MutexGuard<'_, Shape> {
        self.shape.lock().await
    }

    /// The disks that its containers are given. One at a time changes them.
    pub(super) async fn disks(&self) -> tokio::sync::MutexGuard<'_, Disks> {
        self.disks.lock().await
    }

    /// The agent. Calls go through [`Vm::call`].
    pub fn agent(&self) -> AgentClient<Channel> {
        self.agent.clone()
    }

    /// Waits for a call of the agent, or the end of the VM.
    ///
    /// # Errors
    /// What the agent answers; `UNAVAILABLE` when the VM ends first.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Outcome<T> {
        let status = tokio::select! {
            biased;
            answer = call => match answer {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            },
            reason = self.ended() => return Err(gone(&reason)),
        };
        if status.code() == tonic::Code::Unavailable || status.code() == tonic::Code::Unknown {
            // A connection that breaks is often the first sign of the VM's end.
            let ended = tokio::time::timeout(NOTICE_TIMEOUT, self.ended()).await;
            if let Ok(reason) = ended {
                return Err(gone(&reason));
            }
        }
        Err(status.into())
    }

    /// As [`Vm::call`], given up after `limit`.
    ///
    /// # Errors
    /// As [`Vm::call`]; `UNAVAILABLE` when the agent does not answer in time.
    pub async fn call_within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Outcome<T> {
        match tokio::time::timeout(limit, self.call(call)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::unavailable(format!(
                "the guest did not answer within {limit:?}"
            ))),
        }
    }

    /// Waits for the end of the VM; answers the reason.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "nobody watches it any more".to_owned(),
        }
    }

    /// Waits for the end without holding the VM.
    pub(super) fn end(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            let _ = ended.wait_for(Option::is_some).await;
        }
    }

    /// The reason of the end, if the VM has ended.
    pub fn ended_now(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Whether the end was, or will be, what the shim asked for.
    pub fn was_asked_to_end(&self) -> bool {
        self.asked_to_end.load(Ordering::Acquire)
    }

    /// Ends the VM at once, as a failure that nobody asked for.
    pub fn kill(&self) {
        self.kill.notify_one();
    }

    /// Has the guest power itself off; kills it if it does not. Answers when both programs have ended.
    pub async fn shut_down(&self) {
        self.asked_to_end.store(true, Ordering::Release);
        let ended = async {
            // The answer may be lost as the connection goes: the end is what counts.
            let mut agent = self.agent();
            let _ = self.call(agent.shutdown(ShutdownRequest {})).await;
            self.ended().await
        };
        match tokio::time::timeout(SHUTDOWN_TIMEOUT, ended).await {
            Ok(reason) => log::info!("the VM has ended: {reason}"),
            Err(_) => {
                log::warn!("the guest has not powered off within {SHUTDOWN_TIMEOUT:?}; killing it");
                self.kill();
                let _ = tokio::time::timeout(2 * END_TIMEOUT, self.ended()).await;
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill.notify_one();
    }
}

fn gone(reason: &str) -> Failure {
    Failure::unavailable(format!("the pod's VM has ended: {reason}"))
}

/// Owns a VM's programs until both have ended.
async fn watch(
    mut programs: Programs,
    kill: Arc<Notify>,
    end: watch::Sender<Option<String>>,
    (keeper, asked_to_end): (Keeper, Arc<AtomicBool>),
) {
    let mut reason = tokio::select! {
        status = programs.vmm.wait() => {
            // The VMM's connection has closed, at which virtiofsd ends by itself.
            let waited = tokio::time::timeout(END_TIMEOUT, programs.virtiofsd.wait()).await;
            if waited.is_err() {
                log::warn!("virtiofsd outlives the VMM; killing it");
            }
            programs.why_vmm_ended(status).await
        }
        // A guest whose files are gone can only hang.
        status = programs.virtiofsd.wait() => match programs.why_vmm_ended_too().await {
            Some(reason) => reason,
            None => {
                programs.fs_output.finish().await;
                let line = programs.fs_output.last_line().unwrap_or_else(|| describe(status));
                format!("virtiofsd ended: {line}")
            }
        },
        () = kill.notified() => "it was killed".to_owned(),
    };
    programs.kill().await;
    if !asked_to_end.load(Ordering::Acquire) {
        reason = format!("{reason}{}", keeper.keep());
    }
    end.send_replace(Some(reason));
}
