//! One process: the container's own, or a further one in it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_proto::agent::v1::{ProcessState, StateResponse, Stdio, WaitResponse};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Streams;
use super::launch::{Launched, ReportPipe};
use crate::error::{Error, Result};
use crate::ids::ProcessId;
use crate::reaper::{Exit, ExitWatch, exited};
use crate::stdio::pump::{self, Taken};
use crate::stdio::{Arrivals, Slots, terminal};

/// A process, from the request that makes it known until it is deleted.
pub struct Process {
    /// Its name.
    pub id: ProcessId,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The streams that it is given.
    pub stdio: Stdio,
    /// Where connections to its streams arrive.
    pub slots: Slots,
    stage: Mutex<Stage>,
    /// Follows `stage` for those who wait.
    run: watch::Sender<Run>,
}

/// Where a process is in its life. The exit is not a stage: whoever has the process looks at its [`Live::exit`].
enum Stage {
    /// Known, not made. Connections to its streams may arrive.
    Known(Arrivals),
    /// Being made.
    Making,
    /// Made; it waits to be started.
    Made(Arc<Live>, ReportPipe),
    /// Started, or just being so.
    Started(Arc<Live>),
    /// It could not be made.
    Failed,
}

#[derive(Clone)]
enum Run {
    Pending,
    Live(Arc<Live>),
    Failed,
}

/// A process that exists, or has existed.
pub struct Live {
    /// Its number.
    pub pid: i32,
    exit: ExitWatch,
    console: Option<Arc<crate::stdio::fd::Fd>>,
    taken: Vec<Taken>,
    pumps: Vec<AbortHandle>,
}

impl Live {
    /// How it has ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Watches for its end.
    pub fn exit_watch(&self) -> ExitWatch {
        self.exit.clone()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for pump in &self.pumps {
            pump.abort();
        }
    }
}

impl Process {
    /// A process that is known, and not made.
    pub fn new(id: ProcessId, terminal: bool, stdio: Stdio) -> Self {
        let (slots, arrivals) = Slots::new(stdio, terminal);
        Self {
            id,
            terminal,
            stdio,
            slots,
            stage: Mutex::new(Stage::Known(arrivals)),
            run: watch::Sender::new(Run::Pending),
        }
    }

    /// Makes the process by `launch`; once made, its streams move.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it is being made already, or has been; otherwise what `launch` says.
    pub async fn make(&self, launch: impl Future<Output = Result<Launched>>) -> Result<Arc<Live>> {
        let arrivals = {
            let mut stage = self.stage();
            match std::mem::replace(&mut *stage, Stage::Making) {
                Stage::Known(arrivals) => arrivals,
                other => {
                    *stage = other;
                    return Err(self.wrong_state("has been started already"));
                }
            }
        };
        match launch.await {
            Ok(launched) => {
                let Launched {
                    pid,
                    exit,
                    streams,
                    report,
                } = launched;
                let live = Arc::new(connect(pid, exit, streams, arrivals));
                *self.stage() = Stage::Made(live.clone(), report);
                self.run.send_replace(Run::Live(live.clone()));
                Ok(live)
            }
            Err(error) => {
                *self.stage() = Stage::Failed;
                self.run.send_replace(Run::Failed);
                Err(error)
            }
        }
    }

    /// Goes from made to started; what comes back tells when the user's program runs.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it is not made, or started already.
    pub fn start(&self) -> Result<(Arc<Live>, ReportPipe)> {
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Making) {
            Stage::Made(live, report) => {
                if live.exit().is_some() {
                    *stage = Stage::Made(live, report);
                    return Err(self.wrong_state("has exited"));
                }
                *stage = Stage::Started(live.clone());
                Ok((live, report))
            }
            other => {
                let why = match other {
                    Stage::Started(_) => "has been started already",
                    _ => "is not ready to be started",
                };
                *stage = other;
                Err(self.wrong_state(why))
            }
        }
    }

    /// Goes from made to started, for a process that did not have to wait.
    pub fn set_started(&self) {
        let mut stage = self.stage();
        if let Stage::Made(live, _) = &*stage {
            *stage = Stage::Started(live.clone());
        }
    }

    /// The process, if it exists or has existed.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it does not yet, or could not be made.
    pub fn live(&self) -> Result<Arc<Live>> {
        match &*self.stage() {
            Stage::Made(live, _) | Stage::Started(live) => Ok(live.clone()),
            Stage::Known(_) | Stage::Making => Err(self.wrong_state("has not been started")),
            Stage::Failed => Err(self.wrong_state("could not be started")),
        }
    }

    /// The process, if it runs.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it does not exist, `NOT_FOUND` when it has exited (as kill(2) would say).
    pub fn running(&self) -> Result<Arc<Live>> {
        let live = self.live()?;
        match live.exit() {
            None => Ok(live),
            Some(_) => Err(Error::NotFound(format!("{} has exited", self.id))),
        }
    }

    /// Whether it may be deleted: it has exited, or has never existed.
    pub fn is_over(&self) -> bool {
        match &*self.stage() {
            Stage::Known(_) | Stage::Failed => true,
            Stage::Making => false,
            Stage::Made(live, _) | Stage::Started(live) => live.exit().is_some(),
        }
    }

    /// Whether the user's program has been started.
    pub fn is_started(&self) -> bool {
        matches!(&*self.stage(), Stage::Started(_))
    }

    /// Waits until it has exited and its output has been taken. It need not be started yet.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it could not be made.
    pub async fn wait(&self) -> Result<Exit> {
        let mut run = self.run.subscribe();
        let run = run
            .wait_for(|run| !matches!(run, Run::Pending))
            .await
            .map(|run| run.clone());
        let Ok(Run::Live(live)) = run else {
            return Err(self.wrong_state("could not be started"));
        };
        let exit = exited(&mut live.exit_watch()).await;
        for taken in &live.taken {
            // An error means that the pump has ended, which is as good.
            let _ = taken.clone().wait_for(|taken| *taken).await;
        }
        Ok(exit)
    }

    /// What is known of it.
    pub fn state(&self, frozen: bool) -> StateResponse {
        let (state, live) = match &*self.stage() {
            Stage::Known(_) | Stage::Making => (ProcessState::Created, None),
            Stage::Made(live, _) => (ProcessState::Created, Some(live.clone())),
            Stage::Started(live) if frozen => (ProcessState::Paused, Some(live.clone())),
            Stage::Started(live) => (ProcessState::Running, Some(live.clone())),
            Stage::Failed => (ProcessState::Stopped, None),
        };
        let exit = live.as_ref().and_then(|live| live.exit());
        let state = if exit.is_some() {
            ProcessState::Stopped
        } else {
            state
        };
        StateResponse {
            state: state.into(),
            pid: live.map_or(0, |live| live.pid.unsigned_abs()),
            terminal: self.terminal,
            exit: exit.map(exit_message),
        }
    }

    /// Sets the size of its terminal, in characters.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it has none, or does not exist.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let live = self.live()?;
        let console = live
            .console
            .as_ref()
            .ok_or_else(|| self.wrong_state("has no terminal"))?;
        terminal::resize(console.as_ref(), width, height)
            .map_err(|error| Error::system("cannot resize the terminal", error))
    }

    fn wrong_state(&self, why: &str) -> Error {
        Error::State(format!("{} {why}", self.id))
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exit as the interface has it.
pub fn exit_message(exit: Exit) -> WaitResponse {
    WaitResponse {
        exit_status: exit.status,
        exited_at_ns: exit.at_ns,
    }
}

/// Sets the streams of a process moving.
fn connect(pid: i32, exit: ExitWatch, streams: Streams, arrivals: Arrivals) -> Live {
    let mut taken = Vec::new();
    let mut pumps = Vec::new();
    if let (Some(sink), Some(arrival)) = (streams.stdin, arrivals.stdin) {
        let pump = pump::input(sink, arrival, exit.clone());
        pumps.push(tokio::spawn(pump).abort_handle());
    }
    for (source, arrival) in [
        (streams.stdout, arrivals.stdout),
        (streams.stderr, arrivals.stderr),
    ] {
        if let (Some(source), Some(arrival)) = (source, arrival) {
            let (sender, receiver) = watch::channel(false);
            let pump = pump::output(source, arrival, exit.clone(), sender);
            pumps.push(tokio::spawn(pump).abort_handle());
            taken.push(receiver);
        }
    }
    Live {
        pid,
        exit,
        console: streams.console,
        taken,
        pumps,
    }
}
