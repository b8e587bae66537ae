//! `orlop.vmm.v1` on a unix socket: each call becomes a [`Request`], and waits for the controller's answer.

use std::os::unix::net::UnixListener;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use orlop_proto::vmm::v1::vmm_server::{Vmm, VmmServer};
use orlop_proto::vmm::v1::{self as api};
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request as Call, Response, Status as Refusal};

use super::{Message, Reply, Request, Status};
use crate::vm::Outcome;

/// How long clients that wait for the VM's end may take to be told of it.
const FAREWELL: Duration = Duration::from_millis(500);

/// The thread that serves.
#[derive(Debug)]
pub struct Server {
    ended: watch::Sender<Option<Outcome>>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Serves on `listener`; requests go to `controller`.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be had.
    pub fn start(listener: UnixListener, controller: Sender<Message>) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (ended, outcome) = watch::channel(None);
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serve(listener, controller, outcome)) {
                    log::error!("the control socket is no longer served: {error}");
                }
            })?;
        Ok(Server { ended, thread })
    }

    /// Tells those who wait how the VM ended, and stops serving.
    pub fn stop(self, outcome: Outcome) {
        self.ended.send_replace(Some(outcome));
        // It ends within [`FAREWELL`]; a panic in it would have been reported by now.
        let _ = self.thread.join();
    }
}

async fn serve(
    listener: UnixListener,
    controller: Sender<Message>,
    outcome: watch::Receiver<Option<Outcome>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let connections = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    let mut ended = outcome.clone();
    let service = VmmServer::new(Service {
        controller,
        outcome,
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async {
            // The sender is dropped or used: both mean to stop.
            let _ = stopped.await;
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        // An error means that the VM's owner is gone, which is an end, too.
        _ = ended.wait_for(Option::is_some) => drop(stop),
    }
    // A client that keeps its connection open must not keep the VMM.
    match tokio::time::timeout(FAREWELL, server).await {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

struct Service {
    controller: Sender<Message>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Service {
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let ending = || Refusal::unavailable("the VM is ending");
        self.controller
            .send(Message::Request(request(reply)))
            .map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }
}

#[tonic::async_trait]
impl Vmm for Service {
    async fn describe(
        &self,
        _: Call<api::DescribeRequest>,
    ) -> Result<Response<api::DescribeResponse>, Refusal> {
        Ok(Response::new(self.ask(Request::Describe).await?.into()))
    }

    async fn pause(
        &self,
        _: Call<api::PauseRequest>,
    ) -> Result<Response<api::PauseResponse>, Refusal> {
        self.ask(Request::Pause).await?;
        Ok(Response::new(api::PauseResponse {}))
    }

    async fn resume(
        &self,
        _: Call<api::ResumeRequest>,
    ) -> Result<Response<api::ResumeResponse>, Refusal> {
        self.ask(Request::Resume).await?;
        Ok(Response::new(api::ResumeResponse {}))
    }

    async fn shutdown(
        &self,
        _: Call<api::ShutdownRequest>,
    ) -> Result<Response<api::ShutdownResponse>, Refusal> {
        self.ask(Request::PowerButton).await?;
        Ok(Response::new(api::ShutdownResponse {}))
    }

    async fn kill(
        &self,
        _: Call<api::KillRequest>,
    ) -> Result<Response<api::KillResponse>, Refusal> {
        self.ask(Request::Kill).await?;
        Ok(Response::new(api::KillResponse {}))
    }

    async fn wait(
        &self,
        _: Call<api::WaitRequest>,
    ) -> Result<Response<api::WaitResponse>, Refusal> {
        let mut outcome = self.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.ok().as_deref() {
            Some(Some(outcome)) => Ok(Response::new(outcome.into())),
            _ => Err(Refusal::unavailable(
                "the VMM ended without saying how the VM did",
            )),
        }
    }
}

impl From<Status> for api::DescribeResponse {
    fn from(status: Status) -> Self {
        let state = if status.paused {
            api::VmState::Paused
        } else {
            api::VmState::Running
        };
        api::DescribeResponse {
            name: status.name,
            version: env!("CARGO_PKG_VERSION").into(),
            state: state.into(),
            vcpus: status.vcpus.into(),
            memory_bytes: status.memory,
            pid: std::process::id(),
            devices: status
                .devices
                .into_iter()
                .map(|device| api::PciDevice {
                    address: device.address,
                    vendor_id: device.vendor.into(),
                    device_id: device.device.into(),
                    kind: device.kind.into(),
                    counters: device
                        .counters
                        .into_iter()
                        .map(|(k, v)| (k.into(), v))
                        .collect(),
                })
                .collect(),
        }
    }
}

impl From<&Outcome> for api::WaitResponse {
    fn from(outcome: &Outcome) -> Self {
        let kind = match outcome {
            Outcome::PoweredOff => api::Outcome::PoweredOff,
            Outcome::Reset => api::Outcome::Reset,
            Outcome::TripleFault => api::Outcome::TripleFault,
            Outcome::Panicked => api::Outcome::Panicked,
            Outcome::Killed => api::Outcome::Killed,
            Outcome::Failed(_) => api::Outcome::VmmError,
        };
        api::WaitResponse {
            outcome: kind.into(),
            message: outcome.to_string(),
        }
    }
}
