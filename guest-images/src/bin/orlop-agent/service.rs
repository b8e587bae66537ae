//! `orlop.agent.v1` as gRPC: checks the ids and hands each call on.
//!
//! A call that changes something runs as a task of its own, so that it is finished even when its caller goes away in the middle.

use std::io;
use std::sync::Arc;

use orlop_proto::agent::v1::agent_server::Agent;
use orlop_proto::agent::v1::{
    ConfigureNetworkRequest, ConfigureNetworkResponse, CreateRequest, CreateResponse,
    DeleteRequest, DeleteResponse, ExecRequest, ExecResponse, ForgetFilesRequest,
    ForgetFilesResponse, InfoRequest, InfoResponse, PauseRequest, PauseResponse, Phase,
    PidsRequest, PidsResponse, ResizeRequest, ResizeResponse, ResumeRequest, ResumeResponse,
    ShutdownRequest, ShutdownResponse, SignalRequest, SignalResponse, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateRequest, UpdateResponse,
    UpdateVolumeRequest, UpdateVolumeResponse, WaitOomRequest, WaitOomResponse, WaitRequest,
    WaitResponse,
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::container::{Address, Containers, Creation, Root};
use crate::error::{Error, Result};
use crate::files;
use crate::ids::{Id, ProcessId};
use crate::network;

type Answer<T> = std::result::Result<Response<T>, Status>;

/// The service.
pub struct AgentService {
    containers: Arc<Containers>,
    phases: Vec<Phase>,
    shutdown: Arc<Notify>,
}

impl AgentService {
    /// Serves `containers`. `phases` is how the guest came up; `shutdown` is told when it is to end.
    pub fn new(containers: Arc<Containers>, phases: Vec<Phase>, shutdown: Arc<Notify>) -> Self {
        Self {
            containers,
            phases,
            shutdown,
        }
    }
}

/// Runs `work` to its end, whoever still waits for it.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> std::result::Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(Status::from),
        Err(error) => Err(Status::internal(format!("the agent failed: {error}"))),
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        let kernel_release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release,
            phases: self.phases.clone(),
        }))
    }

    async fn configure_network(
        &self,
        request: Request<ConfigureNetworkRequest>,
    ) -> Answer<ConfigureNetworkResponse> {
        // The kernel answers each step at once.
        network::configure(&request.into_inner().interfaces)?;
        Ok(Response::new(ConfigureNetworkResponse {}))
    }

    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let request = request.into_inner();
        let creation = Creation {
            id: Id::parse(&request.container)?,
            root: Root::parse(&request.bundle, &request.root_disk)?,
            spec: request.spec,
            disks: request.disks,
            devices: Address::parse_all(&request.pci_devices)?,
            volumes: request.volumes,
            stdio: request.stdio.unwrap_or_default(),
        };
        let containers = self.containers.clone();
        let pid = finish(async move { containers.create(creation).await }).await?;
        Ok(Response::new(CreateResponse { pid }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let container = Id::parse(&request.container)?;
        let exec = Id::parse(&request.exec)?;
        let stdio = request.stdio.unwrap_or_default();
        self.containers
            .exec(&container, exec, &request.process, stdio)?;
        Ok(Response::new(ExecResponse {}))
    }

    async fn start(&self, request: Request<StartRequest>) -> Answer<StartResponse> {
        let request = request.into_inner();
        let id = ProcessId::parse(&request.container, &request.exec)?;
        let containers = self.containers.clone();
        let pid = finish(async move { containers.start(&id).await }).await?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Answer<SignalResponse> {
        let request = request.into_inner();
        let id = ProcessId::parse(&request.container, &request.exec)?;
        let containers = self.containers.clone();
        finish(async move { containers.signal(&id, request.signal, request.all).await }).await?;
        Ok(Response::new(SignalResponse {}))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Answer<WaitResponse> {
        let request = request.into_inner();
        let id = ProcessId::parse(&request.container, &request.exec)?;
        Ok(Response::new(self.containers.wait(&id).await?))
    }

    async fn wait_oom(&self, request: Request<WaitOomRequest>) -> Answer<WaitOomResponse> {
        let request = request.into_inner();
        let container = Id::parse(&request.container)?;
        let kills = self.containers.wait_oom(&container, request.seen).await?;
        Ok(Response::new(WaitOomResponse { kills }))
    }

    async fn state(&self, request: Request<StateRequest>) -> Answer<StateResponse> {
        let request = request.into_inner();
        let id = ProcessId::parse(&request.container, &request.exec)?;
        Ok(Response::new(self.containers.state(&id)?))
    }

    async fn pids(&self, request: Request<PidsRequest>) -> Answer<PidsResponse> {
        let container = Id::parse(&request.into_inner().container)?;
        let pids = self.containers.pids(&container)?;
        Ok(Response::new(PidsResponse { pids }))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Answer<ResizeResponse> {
        let request = request.into_inner();
        let id = ProcessId::parse(&request.container, &request.exec)?;
        let process = self.containers.process(&id)?;
        process.resize(request.width, request.height)?;
        Ok(Response::new(ResizeResponse {}))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Answer<PauseResponse> {
        let container = Id::parse(&request.into_inner().container)?;
        let containers = self.containers.clone();
        finish(async move { containers.freeze(&container, true).await }).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Answer<ResumeResponse> {
        let container = Id::parse(&request.into_inner().container)?;
        let containers = self.containers.clone();
        finish(async move { containers.freeze(&container, false).await }).await?;
        Ok(Response::new(ResumeResponse {}))
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Answer<StatsResponse> {
        let container = Id::parse(&request.into_inner().container)?;
        Ok(Response::new(self.containers.stats(&container)?))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let request = request.into_inner();
        let container = Id::parse(&request.container)?;
        // The kernel may reclaim memory before it answers.
        let containers = self.containers.clone();
        let changing =
            tokio::task::spawn_blocking(move || containers.update(&container, &request.resources));
        finish(async move {
            changing
                .await
                .unwrap_or_else(|e| Err(Error::system("update", e)))
        })
        .await?;
        Ok(Response::new(UpdateResponse {}))
    }

    async fn update_volume(
        &self,
        request: Request<UpdateVolumeRequest>,
    ) -> Answer<UpdateVolumeResponse> {
        let request = request.into_inner();
        let container = Id::parse(&request.container)?;
        let volume = request.volume.unwrap_or_default();
        // A few small files in memory.
        self.containers
            .update_volume(&container, request.number, &volume)?;
        Ok(Response::new(UpdateVolumeResponse {}))
    }

    async fn forget_files(&self, _: Request<ForgetFilesRequest>) -> Answer<ForgetFilesResponse> {
        finish(async {
            tokio::task::spawn_blocking(files::forget)
                .await
                .unwrap_or_else(|e| Err(io::Error::other(e)))
                .map_err(|e| Error::system("forget files", e))
        })
        .await?;
        Ok(Response::new(ForgetFilesResponse {}))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let request = request.into_inner();
        let id = ProcessId::parse(&request.container, &request.exec)?;
        let containers = self.containers.clone();
        finish(async move { containers.delete(&id).await }).await?;
        Ok(Response::new(DeleteResponse {}))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        log::info!("the host shuts the guest down");
        self.shutdown.notify_one();
        Ok(Response::new(ShutdownResponse {}))
    }
}
