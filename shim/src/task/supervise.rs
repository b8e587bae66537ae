//! Waiting for a process's end, and making it known.
//!
//! A process has ended for containerd when it has exited *and* its output has been taken: whoever hears of the exit
//! may read the output and find all of it. Output that nobody reads must not hold that back for ever.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskExit;
use orlop_proto::agent::v1::{ProcessState, StateRequest, WaitRequest};

use super::Tasks;
use super::container::Container;
use super::memory::MemoryWatch;
use super::process::{Exit, KILLED, Process};
use crate::codes::Failure;
use crate::events::Event;
use crate::sandbox::Vm;

/// How long the last output may take to be read once the process has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether a process has exited while nobody reads its output.
const STALL_CHECK: Duration = Duration::from_secs(5);
/// The status of a process of which the agent does not know how it ended.
const UNKNOWN: u32 = 255;

impl Tasks {
    /// Waits for the end of `process`, and makes it known. For the CRI sandbox's own there is nothing to wait for.
    pub(super) fn supervise(self: &Arc<Self>, container: &Arc<Container>, process: &Arc<Process>) {
        let Some(vm) = container.vm().cloned() else {
            return;
        };
        let (tasks, container, process) = (self.clone(), container.clone(), process.clone());
        tokio::spawn(async move {
            // An exec is not forked in the guest before its start.
            if !process.exec.is_empty() {
                tokio::select! {
                    () = process.wait_started() => {}
                    _ = vm.ended() => {}
                }
                if process.exit().is_some() {
                    // It could not be started.
                    return;
                }
            }
            let status = if process.exec.is_empty() {
                let mut memory = MemoryWatch::new(&vm, &container.id, &tasks.events);
                let status = tokio::select! {
                    status = wait_in_guest(&vm, &container.id, &process) => status,
                    never = memory.run() => match never {},
                };
                memory.finish().await;
                status
            } else {
                wait_in_guest(&vm, &container.id, &process).await
            };
            let exit = Exit::now(status);
            if let Some(streams) = process.streams() {
                streams.drain(DRAIN_TIMEOUT).await;
            }
            tasks.ended(&container, &process, exit).await;
        });
    }

    /// Makes known that a process has ended.
    pub(super) async fn ended(&self, container: &Container, process: &Process, exit: Exit) {
        let _transition = process.transition.lock().await;
        if !process.stopped(exit) {
            return;
        }
        log::info!(
            "exit container={} exec={:?} status={}",
            container.id,
            process.exec,
            exit.status
        );
        if container.is_api_sandbox() {
            return;
        }
        let id = if process.exec.is_empty() {
            &container.id
        } else {
            &process.exec
        };
        self.events.publish(&Event::Exit(TaskExit {
            container_id: container.id.clone(),
            id: id.clone(),
            pid: container.pid(),
            exit_status: exit.status,
            exited_at: exit.timestamp(),
            ..TaskExit::default()
        }));
    }
}

async fn wait_in_guest(vm: &Vm, container: &str, process: &Process) -> u32 {
    let mut failures = 0;
    loop {
        let waited = tokio::select! {
            waited = wait_call(vm, container, &process.exec) => waited,
            () = watch_for_stall(vm, container, process) => {
                // From now on its output is dropped, so the agent's answer comes.
                continue;
            }
        };
        match waited {
            Ok(status) => return status.min(255),
            Err(_) if vm.ended_now().is_some() => return KILLED,
            Err(failure) if failure.is_not_found() || failures >= 5 => {
                log::error!(
                    "the end of {container} {} is unknown: {failure}",
                    process.exec
                );
                return UNKNOWN;
            }
            Err(failure) => {
                log::warn!("waiting for {container} {}: {failure}", process.exec);
                failures += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn wait_call(vm: &Vm, container: &str, exec: &str) -> Result<u32, Failure> {
    let mut agent = vm.agent();
    let request = WaitRequest {
        container: container.to_owned(),
        exec: exec.to_owned(),
    };
    Ok(vm.call(agent.wait(request)).await?.exit_status)
}

/// Ends when the process has exited and its output has not moved for a while; what is left of it is dropped then.
async fn watch_for_stall(vm: &Vm, container: &str, process: &Process) {
    let mut seen = None;
    loop {
        tokio::time::sleep(STALL_CHECK).await;
        let Some(streams) = process.streams() else {
            continue;
        };
        let stalled = streams.stalled_at();
        if stalled.is_some() && stalled == seen {
            let request = StateRequest {
                container: container.to_owned(),
                exec: process.exec.clone(),
            };
            let mut agent = vm.agent();
            let state = vm.call_within(STALL_CHECK, agent.state(request)).await;
            if state.is_ok_and(|state| state.state() == ProcessState::Stopped) {
                log::warn!(
                    "{container} {} has exited and nobody reads its output",
                    process.exec
                );
                streams.discard();
                return;
            }
        }
        seen = stalled;
    }
}
