//! The shim's process: serves a pod from `start` until containerd has shut it down.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use containerd_shim_protos::ttrpc;
use tokio::sync::Notify;

use crate::address::ShimSocket;
use crate::bundle;
use crate::cgroup::{Cgroup, Home};
use crate::cli::Cli;
use crate::config::Config;
use crate::events::Publisher;
use crate::logging::{self, phase};
use crate::process::spawn::{INHERITED_FD, Spawner};
use crate::sandbox::{Pod, StateDir};
use crate::task::{Tasks, sandbox_service, service};

/// How long the last answers and the last events may take.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves the pod `cli.id` at the socket that is descriptor 3.
///
/// # Errors
/// When it cannot begin to.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    logging::init(&cli.id, logging::open_fifo(Path::new("log")), cli.debug);
    // First of all, so that what this process takes is the pod's.
    let cgroup = enter_cgroup();
    let served = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the shim's runtime")
        .and_then(|runtime| runtime.block_on(serve(cli, cgroup)));
    if let Err(error) = &served {
        log::error!("{error:#}");
    }
    served
}

/// Goes into the cgroup that the spec in the working directory names. A pod whose use is not counted where it should be is still a pod.
fn enter_cgroup() -> Option<(Cgroup, Home)> {
    let spec = bundle::spec(Path::new(".")).ok()?;
    let path = spec.linux().as_ref()?.cgroups_path().clone()?;
    match Cgroup::enter(&path) {
        Ok(entered) => entered,
        Err(error) => {
            log::warn!("what the pod takes counts elsewhere: {error}");
            None
        }
    }
}

async fn serve(cli: &Cli, cgroup: Option<(Cgroup, Home)>) -> anyhow::Result<()> {
    // SAFETY: `start` passes the listening socket as this descriptor, and nothing else in this process has it.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(INHERITED_FD) });
    listener
        .local_addr()
        .context("descriptor 3 is not a socket: `serve` is for `start` to run")?;
    close_on_exec(&listener)?;

    let config = Config::load()?;
    let socket = ShimSocket::of(&cli.address, &cli.namespace, &cli.id);
    let directory = StateDir::of(&config.state, &cli.namespace, &cli.id);
    let pod = Arc::new(Pod::new(
        &cli.id,
        config,
        directory,
        socket.clone(),
        Spawner::new()?,
    ));
    if let Some((cgroup, home)) = cgroup {
        pod.set_cgroup(cgroup, home);
    }
    pod.begin()?;
    // The pod's sockets are named relative to it; and no file system of a bundle is kept busy.
    std::env::set_current_dir(pod.directory.path()).context("cannot enter the pod's directory")?;
    logging::also_to(&pod.directory.file("shim.log"));
    phase("shim-started", &cli.id);

    let address = std::env::var("TTRPC_ADDRESS")
        .ok()
        .filter(|address| !address.is_empty());
    let (events, forwarder) = Publisher::new(address, &cli.namespace);
    let exit = Arc::new(Notify::new());
    let tasks = Arc::new(Tasks::new(pod.clone(), events, exit.clone()));
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(ttrpc::r#async::transport::Listener::try_from(listener)?)
        .register_service(service::services(&tasks))
        .register_service(sandbox_service::services(&tasks));
    server.start().await?;

    exit.notified().await;
    // No new calls; the answer to Shutdown is on its way.
    let _ = tokio::time::timeout(END_TIMEOUT, server.shutdown()).await;
    pod.close().await;
    let _ = std::fs::remove_file(socket.path());
    drop(server);
    drop(tasks);
    let _ = tokio::time::timeout(END_TIMEOUT, forwarder).await;
    phase("shim-ends", &cli.id);
    Ok(())
}

fn close_on_exec(listener: &UnixListener) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}
