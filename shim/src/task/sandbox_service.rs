//! The sandbox service, as containerd 2 calls it over ttrpc for a handler with `sandboxer = "shim"`.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::types::platform::Platform;
use ttrpc::r#async::{Service as TtrpcService, TtrpcContext};

use super::Tasks;
use super::service::to_the_end;

/// The service by its name.
pub fn services(tasks: &Arc<Tasks>) -> HashMap<String, TtrpcService> {
    create_sandbox(Arc::new(Service(tasks.clone())))
}

struct Service(Arc<Tasks>);

#[async_trait]
impl Sandbox for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let tasks = self.0.clone();
        to_the_end("create the sandbox", async move {
            tasks.create_sandbox(request).await
        })
        .await?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        _: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let tasks = self.0.clone();
        to_the_end(
            "start the sandbox",
            async move { tasks.start_sandbox().await },
        )
        .await
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        _: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            ..Platform::default()
        };
        Ok(PlatformResponse {
            platform: MessageField::some(platform),
            ..PlatformResponse::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        _: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let tasks = self.0.clone();
        to_the_end(
            "stop the sandbox",
            async move { tasks.stop_sandbox().await },
        )
        .await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        _: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        Ok(self.0.wait_sandbox().await?)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        _: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        Ok(self.0.sandbox_status()?)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, _: PingRequest) -> ttrpc::Result<PingResponse> {
        self.0.the_sandbox()?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        _: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let tasks = self.0.clone();
        to_the_end("shut the sandbox down", async move {
            tasks.shutdown_sandbox().await;
            Ok(())
        })
        .await?;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        _: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        Ok(self.0.sandbox_metrics().await?)
    }
}
