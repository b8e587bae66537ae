//! What is done to a container and its processes once they are made.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest,
    StartResponse,
};
use containerd_shim_protos::events::task::{
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart,
};
use orlop_proto::agent::v1 as agent;

use super::Tasks;
use super::container::Container;
use super::create::{remove_files, remove_from_guest};
use super::process::{Exit, KILLED, Phase, Process};
use crate::codes::{Failure, Outcome};
use crate::events::Event;
use crate::io::{StdioPaths, Streams};
use crate::logging::phase;
use crate::sandbox::Vm;
use crate::spec;

/// How long a guest may take to deliver SIGKILL. One that takes longer hangs, and its VM is killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The status of a process that could not be started.
const NOT_STARTED: u32 = 255;

impl Tasks {
    /// Starts a process that was made.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for one that was started before; what the guest says when it cannot be.
    pub async fn start(&self, request: StartRequest) -> Outcome<StartResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let _transition = process.transition.lock().await;
        if process.phase() != Phase::Created {
            let what = format!("{} {} was started before", request.id, request.exec_id);
            return Err(Failure::precondition(what));
        }
        if let Some(vm) = container.vm() {
            if let Some(streams) = process.streams() {
                streams.started();
            }
            let start = agent::StartRequest {
                container: request.id.clone(),
                exec: request.exec_id.clone(),
            };
            let mut agent = vm.agent();
            if let Err(failure) = vm.call(agent.start(start)).await {
                if !process.exec.is_empty() {
                    // Nobody will hear of its end: it was never there.
                    process.stopped(Exit::now(NOT_STARTED));
                    process.set_streams(None);
                }
                return Err(failure);
            }
        }
        process.started();
        phase("started", &request.id);
        let pid = container.pid();
        self.events.publish(&if process.exec.is_empty() {
            Event::Start(TaskStart {
                container_id: request.id,
                pid,
                ..TaskStart::default()
            })
        } else {
            Event::ExecStarted(TaskExecStarted {
                container_id: request.id,
                exec_id: request.exec_id,
                pid,
                ..TaskExecStarted::default()
            })
        });
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    /// Makes a further process in a running container.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for an id in use, `FAILED_PRECONDITION` when the container does not run.
    pub async fn exec(self: &Arc<Self>, request: ExecProcessRequest) -> Outcome<()> {
        let container = self.container(&request.id)?;
        if !crate::cli::is_name(&request.exec_id) {
            return Err(Failure::invalid(format!(
                "{:?} is not a process's id",
                request.exec_id
            )));
        }
        let Some(vm) = container.vm() else {
            return Err(Failure::precondition(
                "a pod's sandbox has no processes of its own",
            ));
        };
        if container.init.phase() != Phase::Running {
            return Err(Failure::precondition(format!(
                "container {} does not run",
                request.id
            )));
        }
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let json = spec::adapt_exec(&request.spec.value, request.terminal)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        let process = Arc::new(Process::new(&request.exec_id, stdio));
        if !container.add_exec(process.clone()) {
            return Err(Failure::already_exists(format!(
                "process {} exists",
                request.exec_id
            )));
        }
        if let Err(failure) = make_exec(vm, &container, &process, json).await {
            container.remove_exec(&request.exec_id);
            return Err(failure);
        }
        self.events.publish(&Event::ExecAdded(TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..TaskExecAdded::default()
        }));
        self.supervise(&container, &process);
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `NOT_FOUND` when the process has ended.
    pub async fn kill(&self, request: KillRequest) -> Outcome<()> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        if process.exit().is_some() {
            return Err(Failure::not_found("the process has ended"));
        }
        let Some(vm) = container.vm() else {
            return self.kill_sandbox(&container, request.signal).await;
        };
        let mut agent = vm.agent();
        let signal = agent::SignalRequest {
            container: request.id,
            exec: request.exec_id,
            signal: request.signal,
            all: request.all,
        };
        if request.signal != libc::SIGKILL.unsigned_abs() {
            return match vm.call(agent.signal(signal)).await {
                // With the VM has ended whatever was in it, and whoever waits for it will hear so.
                Err(_) if vm.ended_now().is_some() => Ok(()),
                answer => answer.map(drop),
            };
        }
        let answer = tokio::time::timeout(KILL_TIMEOUT, vm.call(agent.signal(signal))).await;
        match answer {
            Ok(Err(_)) if vm.ended_now().is_some() => Ok(()),
            Ok(answer) => answer.map(drop),
            Err(_) => {
                log::error!(
                    "the guest does not deliver SIGKILL within {KILL_TIMEOUT:?}; killing the VM"
                );
                vm.kill();
                Ok(())
            }
        }
    }

    /// The sandbox's process would be one that sleeps until it is told to end.
    async fn kill_sandbox(&self, container: &Container, signal: u32) -> Outcome<()> {
        let ends = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT].map(i32::unsigned_abs);
        if ends.contains(&signal) {
            // With the sandbox ends whatever still runs in the pod.
            self.pod.close().await;
            self.ended(container, &container.init, Exit::now(128 + signal))
                .await;
        }
        Ok(())
    }

    /// Forgets a process that has ended, or was never started.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` while it runs.
    pub async fn delete(&self, request: DeleteRequest) -> Outcome<DeleteResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        if process.phase() == Phase::Running {
            return Err(Failure::precondition(format!(
                "{} {} runs",
                request.id, request.exec_id
            )));
        }
        // Ends what is still copied.
        process.set_streams(None);
        if process.exec.is_empty() {
            self.delete_container(&container).await;
        } else {
            if let Some(vm) = container.vm() {
                let mut agent = vm.agent();
                let delete = agent::DeleteRequest {
                    container: request.id.clone(),
                    exec: request.exec_id.clone(),
                };
                // A process that was never started, or that went with its VM, may not be there.
                let _ = vm.call_within(KILL_TIMEOUT, agent.delete(delete)).await;
            }
            container.remove_exec(&process.exec);
        }
        let exit = process.exit().unwrap_or_else(|| Exit::now(KILLED));
        if process.exec.is_empty() {
            self.events.publish(&Event::Delete(TaskDelete {
                container_id: request.id,
                pid: container.pid(),
                exit_status: exit.status,
                exited_at: exit.timestamp(),
                ..TaskDelete::default()
            }));
        }
        Ok(DeleteResponse {
            pid: container.pid(),
            exit_status: exit.status,
            exited_at: exit.timestamp(),
            ..DeleteResponse::default()
        })
    }

    /// Removes a container that was made for nobody.
    pub async fn abandon(&self, id: &str) {
        let request = DeleteRequest {
            id: id.to_owned(),
            ..DeleteRequest::default()
        };
        if let Err(failure) = self.delete(request).await {
            log::error!("cannot remove {id}: {failure}");
        }
    }

    async fn delete_container(&self, container: &Container) {
        let id = &container.id;
        container.end_chores();
        match container.vm() {
            Some(vm) => {
                let never_started = container.init.exit().is_none();
                remove_from_guest(vm, id, never_started).await;
                self.pod.dismiss(id);
                // A lone container's VM goes with it; a CRI pod's stays until its sandbox is stopped.
                if *id == self.pod.id {
                    self.pod.close().await;
                } else {
                    remove_files(self.pod.share(), id).await;
                }
            }
            None => self.pod.close().await,
        }
        self.registry.remove(id);
        phase("deleted", id);
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn resize(&self, request: ResizePtyRequest) -> Outcome<()> {
        let (container, _) = self.process(&request.id, &request.exec_id)?;
        if let Some(vm) = container.vm() {
            let mut agent = vm.agent();
            let resize = agent::ResizeRequest {
                container: request.id,
                exec: request.exec_id,
                width: request.width,
                height: request.height,
            };
            vm.call(agent.resize(resize)).await?;
        }
        Ok(())
    }

    /// Ends a process's standard input, behind what has been written.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn close_stdin(&self, id: &str, exec: &str) -> Outcome<()> {
        let (_, process) = self.process(id, exec)?;
        if let Some(streams) = process.streams() {
            streams.close_stdin();
        }
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it does not run.
    pub async fn pause(&self, id: &str) -> Outcome<()> {
        let container = self.container(id)?;
        let vm = running_vm(&container)?;
        let mut agent = vm.agent();
        vm.call(agent.pause(agent::PauseRequest {
            container: id.to_owned(),
        }))
        .await?;
        container.set_paused(true);
        let container_id = id.to_owned();
        self.events.publish(&Event::Paused(TaskPaused {
            container_id,
            ..Default::default()
        }));
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it does not run.
    pub async fn resume(&self, id: &str) -> Outcome<()> {
        let container = self.container(id)?;
        let vm = running_vm(&container)?;
        let mut agent = vm.agent();
        vm.call(agent.resume(agent::ResumeRequest {
            container: id.to_owned(),
        }))
        .await?;
        container.set_paused(false);
        let container_id = id.to_owned();
        self.events.publish(&Event::Resumed(TaskResumed {
            container_id,
            ..Default::default()
        }));
        Ok(())
    }

    /// Ends the shim, if it has no task left.
    pub fn shutdown(&self) {
        if self.registry.is_empty() {
            self.exit.notify_one();
        }
    }
}

fn running_vm(container: &Container) -> Outcome<&Arc<Vm>> {
    let vm = container
        .vm()
        .filter(|_| container.init.phase() == Phase::Running);
    vm.ok_or_else(|| Failure::precondition(format!("container {} does not run", container.id)))
}

async fn make_exec(
    vm: &Vm,
    container: &Container,
    process: &Process,
    json: Vec<u8>,
) -> Outcome<()> {
    let mut agent = vm.agent();
    let exec = agent::ExecRequest {
        container: container.id.clone(),
        exec: process.exec.clone(),
        process: json,
        stdio: Some(process.stdio.wanted()),
    };
    vm.call(agent.exec(exec)).await?;
    match Streams::open(vm.vsock(), &container.id, &process.exec, &process.stdio).await {
        Ok(streams) => {
            process.set_streams(Some(Arc::new(streams)));
            Ok(())
        }
        Err(error) => {
            let delete = agent::DeleteRequest {
                container: container.id.clone(),
                exec: process.exec.clone(),
            };
            let _ = vm.call_within(KILL_TIMEOUT, agent.delete(delete)).await;
            Err(Failure::internal(error.to_string()))
        }
    }
}
