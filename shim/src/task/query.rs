//! Answers about containers and their processes.

use containerd_shim_protos::api::{
    ConnectResponse, PidsResponse, ProcessInfo, StateRequest, StateResponse, StatsResponse,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use orlop_proto::agent::v1 as agent;

use super::Tasks;
use super::process::Phase;
use crate::codes::{Failure, Outcome};
use crate::stats;

impl Tasks {
    /// The state of a process.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn state(&self, request: StateRequest) -> Outcome<StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.exit();
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle.display().to_string(),
            pid: container.pid(),
            status: EnumOrUnknown::new(container.status(&process)),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map_or_else(MessageField::none, |exit| exit.timestamp()),
            ..StateResponse::default()
        })
    }

    /// Waits for a process's end.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn wait(&self, request: WaitRequest) -> Outcome<WaitResponse> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: exit.timestamp(),
            ..WaitResponse::default()
        })
    }

    /// The processes of this machine that a container consists of: the one that stands for it. Never none, or containerd
    /// would take the shim for a leaked one when it restarts.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn pids(&self, id: &str) -> Outcome<PidsResponse> {
        let container = self.container(id)?;
        let process = ProcessInfo {
            pid: container.pid(),
            ..ProcessInfo::default()
        };
        Ok(PidsResponse {
            processes: vec![process],
            ..PidsResponse::default()
        })
    }

    /// A container's resource use.
    ///
    /// # Errors
    /// `NOT_FOUND`; what the guest says.
    pub async fn stats(&self, id: &str) -> Outcome<StatsResponse> {
        let container = self.container(id)?;
        let stopped = matches!(container.init.phase(), Phase::Stopped(_));
        let metrics = match container.vm() {
            Some(vm) if !stopped => {
                let mut agent = vm.agent();
                let request = agent::StatsRequest {
                    container: id.to_owned(),
                };
                stats::metrics(&vm.call(agent.stats(request)).await?)
            }
            _ => stats::nothing(),
        };
        let metrics = metrics.map_err(|error| Failure::internal(error.to_string()))?;
        Ok(StatsResponse {
            stats: MessageField::some(metrics),
            ..StatsResponse::default()
        })
    }

    /// Who serves a container.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn connect(&self, id: &str) -> Outcome<ConnectResponse> {
        let container = self.container(id)?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.pid(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }
}
