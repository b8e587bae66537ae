//! Puts the service together: the reaper, the containers, the ports, and the end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use orlop_proto::agent::v1::Phase;
use orlop_proto::agent::v1::agent_server::AgentServer;
use orlop_proto::agent::{CONTROL_PORT, FORWARD_PORT, SHARE_MOUNT, STREAM_PORT};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use tonic::transport::Server;

use crate::console;
use crate::container::{Containers, Places};
use crate::forward;
use crate::init::phase;
use crate::listen::Listener;
use crate::reaper::Reaper;
use crate::service::AgentService;
use crate::stdio::hello;

/// How long the answer to Shutdown may take to leave.
const FAREWELL: Duration = Duration::from_millis(20);

/// How long the agent tries to tell the host that it is ready. The kernel gives up on each try after two seconds, in which a busy
/// host may not have answered.
const READY_PATIENCE: Duration = Duration::from_secs(60);

struct Ports {
    control: Listener,
    streams: Listener,
    forwards: Listener,
}

/// Serves in a guest, over vsock, until it is to end. `phases` is what has passed so far; `later` is run in a thread of its own
/// when the host knows that the guest is ready.
///
/// # Errors
/// When the guest has no vsock, or the service cannot run.
pub fn in_guest(
    mut phases: Vec<Phase>,
    later: impl FnOnce() + Send + 'static,
) -> anyhow::Result<()> {
    run(async move {
        let listen = |port| {
            Listener::vsock(port)
                .with_context(|| format!("cannot listen on vsock port {port} (is there a device?)"))
        };
        let ports = Ports {
            control: listen(CONTROL_PORT)?,
            streams: listen(STREAM_PORT)?,
            forwards: listen(FORWARD_PORT)?,
        };
        let places = Places::below(Path::new("/run/orlop"), SHARE_MOUNT.into());
        phases.push(phase("serving"));
        tokio::spawn(async {
            tell_host().await;
            std::thread::spawn(later);
        });
        serve(ports, places, phases).await
    })
}

/// Serves on unix sockets in `directory`: `control.sock`, `streams.sock`, `forwards.sock`, and `share` for the bundles.
///
/// # Errors
/// When the service cannot run.
pub fn on_unix(directory: &Path) -> anyhow::Result<()> {
    console::log_to_stderr();
    nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
    run(async move {
        let listen = |name| {
            let path = directory.join(name);
            Listener::unix(&path).with_context(|| format!("cannot listen on {}", path.display()))
        };
        let ports = Ports {
            control: listen("control.sock")?,
            streams: listen("streams.sock")?,
            forwards: listen("forwards.sock")?,
        };
        let places = Places::below(directory, directory.join("share"));
        serve(ports, places, vec![phase("serving")]).await
    })
}

/// One thread is enough for a service that moves bytes and waits.
fn run(main: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(main)
}

async fn serve(ports: Ports, places: Places, phases: Vec<Phase>) -> anyhow::Result<()> {
    let reaper = Reaper::start().context("cannot wait for processes")?;
    let containers =
        Arc::new(Containers::new(reaper, places).context("cannot make the state directory")?);
    let shutdown = Arc::new(Notify::new());
    let service = AgentService::new(containers.clone(), phases, shutdown.clone());

    let (control_sender, control) = mpsc::channel(1);
    let (streams_sender, streams) = mpsc::channel(1);
    tokio::spawn(ports.control.accept_into(control_sender));
    tokio::spawn(ports.streams.accept_into(streams_sender));
    let (forwards_sender, forwards) = mpsc::channel(1);
    tokio::spawn(ports.forwards.accept_into(forwards_sender));
    tokio::spawn(forward::serve(forwards));
    tokio::spawn(hello::serve(streams, containers.clone()));
    let server = Server::builder()
        .add_service(AgentServer::new(service))
        .serve_with_incoming(ReceiverStream::new(control).map(Ok::<_, io::Error>));

    let mut terminate = signal(SignalKind::terminate()).context("cannot take signals")?;
    // Ctrl-Alt-Del, once the kernel is told to leave it to us.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take signals")?;
    tokio::select! {
        result = server => result.context("the service ended")?,
        () = shutdown.notified() => tokio::time::sleep(FAREWELL).await,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    containers.kill_all().await;
    Ok(())
}

/// Connects once to the host, which learns by it that the guest is ready.
async fn tell_host() {
    let host = VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT);
    let told = async {
        loop {
            match VsockStream::connect(host).await {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                other => return other,
            }
        }
    };
    match tokio::time::timeout(READY_PATIENCE, told).await {
        Ok(Ok(_)) => {}
        // A host that does not listen asks by Info when it wants to know.
        Ok(Err(error)) => log::info!("the host does not listen for readiness: {error}"),
        Err(_) => log::warn!("the host did not take the signal of readiness"),
    }
}
