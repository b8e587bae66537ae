//! `orlop.vmm.v1` on a unix socket: each call becomes a [`Request`], and waits for the controller's answer.
//!
//! What serves clients is set up when the first of them comes: a VM that nobody asks has neither its memory nor the time for it.

mod console;
mod events;
mod messages;
mod operations;
mod requests;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use orlop_proto::files::Carrier;
use orlop_proto::vmm::v1::vmm_server::{Vmm, VmmServer};
use orlop_proto::vmm::v1::{self as api};
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request as Call, Response, Status, Streaming};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use self::operations::Operations;
use super::news::News;
use super::{Message, Refusal, Reply, Request};
use crate::config::DeviceConfig;
use crate::devices::console::Console;
use crate::vm::Outcome;

/// How long clients that wait for the VM's end may take to be told of it.
const FAREWELL: Duration = Duration::from_millis(500);

/// The thread that serves.
#[derive(Debug)]
pub struct Server {
    ended: watch::Sender<Option<Outcome>>,
    /// Wakes the thread while it waits for the first client.
    stop: EventFd,
    thread: JoinHandle<()>,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    /// Serves on `listener`; requests go to `controller`.
    ///
    /// # Errors
    /// When the thread or its event cannot be had.
    pub fn start(
        listener: UnixListener,
        controller: Sender<Message>,
        news: News,
        console: Weak<Console>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let (ended, outcome) = watch::channel(None);
        let service = Service {
            controller,
            outcome,
            news,
            console,
            operations: Operations::default(),
        };
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                let served = first_client(&listener, &stopped).map_err(Error::from);
                let served = served.and_then(|client| match client {
                    true => serve(listener, service),
                    false => Ok(()),
                });
                if let Err(error) = served {
                    log::error!("the control socket is no longer served: {error}");
                }
            })?;
        Ok(Server {
            ended,
            stop,
            thread,
        })
    }

    /// Tells those who wait how the VM ended, and stops serving.
    pub fn stop(self, outcome: Outcome) {
        self.ended.send_replace(Some(outcome));
        // It is written once.
        let _ = self.stop.write(1);
        // It ends within [`FAREWELL`]; a panic in it would have been reported by now.
        let _ = self.thread.join();
    }
}

/// Waits until a client connects: `true`; or until nothing is to be served any more.
fn first_client(listener: &UnixListener, stop: &EventFd) -> io::Result<bool> {
    const CLIENT: u64 = 0;
    const STOP: u64 = 1;
    let epoll = Epoll::new()?;
    for (fd, token) in [(listener.as_raw_fd(), CLIENT), (stop.as_raw_fd(), STOP)] {
        epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, token),
        )?;
    }
    let mut ready = [EpollEvent::default(); 2];
    loop {
        match epoll.wait(-1, &mut ready) {
            Ok(count) => {
                let mut ready = ready.iter().take(count);
                return Ok(ready.any(|event| event.data() == CLIENT));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn serve(listener: UnixListener, service: Service) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve_all(listener, service))
}

async fn serve_all(listener: UnixListener, service: Service) -> Result<(), Error> {
    let connections = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    let connections = connections.map(|stream| Ok::<_, io::Error>(Carrier::server(stream?)));
    let mut ended = service.outcome.clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(VmmServer::new(service))
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
    news: News,
    console: Weak<Console>,
    operations: Operations,
}

impl Service {
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let ending = || Status::unavailable("the VM is ending, or its guest was reset");
        self.controller
            .send(Message::Request(request(reply)))
            .map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }

    fn console(&self) -> Result<Arc<Console>, Status> {
        let console = self.console.upgrade();
        console.ok_or_else(|| Status::unavailable("the VM is ending"))
    }

    async fn add(
        &self,
        (device, files): (DeviceConfig, Vec<OwnedFd>),
    ) -> Result<Response<api::AddDeviceResponse>, Status> {
        let number = self
            .ask(|reply| Request::AddDevice(device, files, reply))
            .await??;
        Ok(Response::new(api::AddDeviceResponse {
            address: number.to_string(),
        }))
    }
}

#[tonic::async_trait]
impl Vmm for Service {
    async fn describe(
        &self,
        _: Call<api::DescribeRequest>,
    ) -> Result<Response<api::DescribeResponse>, Status> {
        Ok(Response::new(self.ask(Request::Describe).await?.into()))
    }

    async fn boot(&self, _: Call<api::BootRequest>) -> Result<Response<api::BootResponse>, Status> {
        self.ask(Request::Boot).await?;
        Ok(Response::new(api::BootResponse {}))
    }

    async fn pause(
        &self,
        _: Call<api::PauseRequest>,
    ) -> Result<Response<api::PauseResponse>, Status> {
        self.ask(Request::Pause).await??;
        Ok(Response::new(api::PauseResponse {}))
    }

    async fn resume(
        &self,
        _: Call<api::ResumeRequest>,
    ) -> Result<Response<api::ResumeResponse>, Status> {
        self.ask(Request::Resume).await??;
        Ok(Response::new(api::ResumeResponse {}))
    }

    async fn reset(
        &self,
        _: Call<api::ResetRequest>,
    ) -> Result<Response<api::ResetResponse>, Status> {
        self.ask(Request::Reset).await??;
        Ok(Response::new(api::ResetResponse {}))
    }

    async fn shutdown(
        &self,
        _: Call<api::ShutdownRequest>,
    ) -> Result<Response<api::ShutdownResponse>, Status> {
        self.ask(Request::PowerButton).await??;
        Ok(Response::new(api::ShutdownResponse {}))
    }

    async fn add_disk(
        &self,
        call: Call<api::AddDiskRequest>,
    ) -> Result<Response<api::AddDeviceResponse>, Status> {
        self.add(requests::disk(call)?).await
    }

    async fn add_net(
        &self,
        call: Call<api::AddNetRequest>,
    ) -> Result<Response<api::AddDeviceResponse>, Status> {
        self.add(requests::net(call)?).await
    }

    async fn add_fs(
        &self,
        call: Call<api::AddFsRequest>,
    ) -> Result<Response<api::AddDeviceResponse>, Status> {
        self.add(requests::fs(call.into_inner())?).await
    }

    async fn add_host_device(
        &self,
        call: Call<api::AddHostDeviceRequest>,
    ) -> Result<Response<api::AddDeviceResponse>, Status> {
        self.add(requests::host_device(call.into_inner())?).await
    }

    async fn remove_device(
        &self,
        call: Call<api::RemoveDeviceRequest>,
    ) -> Result<Response<api::Operation>, Status> {
        let request = call.into_inner();
        let number = requests::device(&request)?;
        let gone = self
            .ask(|reply| Request::RemoveDevice(number, reply))
            .await??;
        let limit = requests::limit(request.timeout_ms);
        let late = requests::not_yet_gone(number, limit);
        let operation = self.operations.begin(vec![gone], limit, late)?;
        Ok(Response::new(operation))
    }

    async fn resize(
        &self,
        call: Call<api::ResizeRequest>,
    ) -> Result<Response<api::Operation>, Status> {
        let request = call.into_inner();
        let resize = requests::resize(&request)?;
        let waits = self.ask(|reply| Request::Resize(resize, reply)).await??;
        let limit = requests::limit(request.timeout_ms);
        let late = requests::not_yet_resized(limit);
        let operation = self.operations.begin(waits, limit, late)?;
        Ok(Response::new(operation))
    }

    async fn wait_operation(
        &self,
        call: Call<api::WaitOperationRequest>,
    ) -> Result<Response<api::Operation>, Status> {
        let operation = self.operations.wait(call.into_inner().id).await?;
        Ok(Response::new(operation))
    }

    async fn set_balloon(
        &self,
        call: Call<api::SetBalloonRequest>,
    ) -> Result<Response<api::SetBalloonResponse>, Status> {
        let bytes = call.into_inner().bytes;
        self.ask(|reply| Request::SetBalloon(bytes, reply))
            .await??;
        Ok(Response::new(api::SetBalloonResponse {}))
    }

    async fn kill(&self, _: Call<api::KillRequest>) -> Result<Response<api::KillResponse>, Status> {
        self.ask(Request::Kill).await?;
        Ok(Response::new(api::KillResponse {}))
    }

    async fn wait(&self, _: Call<api::WaitRequest>) -> Result<Response<api::WaitResponse>, Status> {
        let mut outcome = self.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.ok().as_deref() {
            Some(Some(outcome)) => Ok(Response::new(outcome.into())),
            _ => Err(Status::unavailable(
                "the VMM ended without saying how the VM did",
            )),
        }
    }

    type EventsStream = ReceiverStream<Result<api::Event, Status>>;

    async fn events(
        &self,
        _: Call<api::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        Ok(Response::new(events::stream(self.news.listen())))
    }

    type ConsoleStream = ReceiverStream<Result<api::ConsoleOutput, Status>>;

    async fn console(
        &self,
        call: Call<Streaming<api::ConsoleInput>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let listener = self.console()?.listen();
        tokio::spawn(console::feed(self.console.clone(), call.into_inner()));
        Ok(Response::new(console::stream(listener)))
    }

    async fn resize_console(
        &self,
        call: Call<api::ResizeConsoleRequest>,
    ) -> Result<Response<api::ResizeConsoleResponse>, Status> {
        let size = requests::size(&call.into_inner())?;
        self.console()?.resize(size).map_err(Refusal::from)?;
        Ok(Response::new(api::ResizeConsoleResponse {}))
    }
}
