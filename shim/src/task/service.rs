//! The task service, as containerd calls it over ttrpc.
//!
//! The generated service is of version 3 of the interface. Version 2, which containerd 1.x speaks, has the same calls and
//! messages under another name, so [`services`] registers the same service twice.
//!
//! The server drops a call whose caller's time is up. What a call does must not stop half-way, so each that changes
//! anything runs as a task of its own ([`to_the_end`]).

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc;
use tokio::sync::oneshot;
use ttrpc::r#async::{Service as TtrpcService, TtrpcContext};

use super::Tasks;
use crate::codes::{Failure, Outcome};

const NAME_V2: &str = "containerd.task.v2.Task";

/// The task service under both of its names.
pub fn services(tasks: &Arc<Tasks>) -> HashMap<String, TtrpcService> {
    let service = || Arc::new(Service(tasks.clone()));
    let second = create_task(service())
        .into_values()
        .map(|service| (NAME_V2.to_owned(), service));
    let mut services = create_task(service());
    services.extend(second);
    services
}

struct Service(Arc<Tasks>);

/// Runs `work` to its end, whether or not its caller waits for it.
pub(super) async fn to_the_end<T: Send + 'static>(
    call: &'static str,
    work: impl Future<Output = Outcome<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => Err(Failure::internal(format!("{call}: {error}"))),
    };
    said(call, done)
}

/// Logs a failure on its way out.
fn said<T>(call: &'static str, done: Outcome<T>) -> ttrpc::Result<T> {
    done.map_err(|failure| {
        if failure.is_not_found() {
            log::debug!("{call}: {failure}");
        } else {
            log::error!("{call}: {failure}");
        }
        failure.into()
    })
}

/// Runs a call of `self.0` to its end.
macro_rules! run {
    ($service:ident, $name:literal, |$tasks:ident| $work:expr) => {{
        let $tasks = $service.0.clone();
        to_the_end($name, async move { $work }).await
    }};
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(self.0.state(request)?)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let (tasks, id) = (self.0.clone(), request.id.clone());
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(Ok(_)) = answer.send(tasks.create(request).await) {
                // containerd has given up, and would not hear of the container again.
                log::warn!("nobody waits for {id} any more: removing it");
                tasks.abandon(&id).await;
            }
        });
        // Not by a task of its own: that this call is dropped is how one hears of it.
        let made = answered
            .await
            .unwrap_or_else(|_| Err(Failure::internal("it was not finished")));
        said("create", made)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        run!(self, "start", |tasks| tasks.start(request).await)
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        run!(self, "delete", |tasks| tasks.delete(request).await)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        Ok(self.0.pids(&request.id)?)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        run!(self, "pause", |tasks| tasks
            .pause(&request.id)
            .await
            .map(|()| Empty::new()))
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        run!(self, "resume", |tasks| tasks
            .resume(&request.id)
            .await
            .map(|()| Empty::new()))
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(Failure::unimplemented("checkpoints are not supported").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        run!(self, "kill", |tasks| tasks
            .kill(request)
            .await
            .map(|()| Empty::new()))
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        run!(self, "exec", |tasks| tasks
            .exec(request)
            .await
            .map(|()| Empty::new()))
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        run!(self, "resize", |tasks| tasks
            .resize(request)
            .await
            .map(|()| Empty::new()))
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        if request.stdin {
            self.0.close_stdin(&request.id, &request.exec_id)?;
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        run!(self, "update", |tasks| tasks
            .update(request)
            .await
            .map(|()| Empty::new()))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        Ok(self.0.wait(request).await?)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Ok(self.0.stats(&request.id).await?)
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        Ok(self.0.connect(&request.id)?)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.0.shutdown();
        Ok(Empty::new())
    }
}
