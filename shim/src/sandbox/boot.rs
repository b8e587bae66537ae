//! Booting a pod's VM: virtiofsd, the VMM, and the wait until the agent in the guest is ready.
//!
//! Both programs could fail at any point, and the guest could hang; so the wait ends with whichever comes first of the
//! agent's call, the end of either program, and the time limit. That limit is for all of it, until the guest has its network: on a node
//! where many VMs boot at once each step is as slow as the others. The sockets that the programs meet at are made here,
//! listening, before the programs start: nobody polls for one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use orlop_proto::agent::v1::agent_client::AgentClient;
use orlop_proto::agent::v1::{ConfigureNetworkRequest, Interface};
use orlop_proto::agent::{CONTROL_PORT, SHARE_TAG};
use orlop_proto::connect;
use tokio::time::Instant;

use super::Pod;
use super::agent_file::AgentFile;
use super::output::Output;
use super::shape::Shape;
use super::state::sockets;
use super::vm::{Programs, Vm};
use crate::logging::phase;
use crate::network::{Card, NetworkError};
use crate::process::spawn::{INHERITED_FD, Running};

/// What every guest's kernel is told: nothing is probed that a VM does not have, and each processor's memory of its own is had page by page (else a
/// second piece of it costs 4 MiB).
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux \
    i8042.dumbkbd swiotlb=noforce cryptomgr.notests tsc=reliable random.trust_cpu=1 \
    percpu_alloc=page";

/// Memory that comes is used, and for what can be moved out of it again.
const MOVABLE_MEMORY: &str = " memhp_default_state=online_movable";

/// Why a VM did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A program cannot be started.
    #[error("cannot start {what} {}: {source}; set `{key}` in the configuration of Orlop", path.display())]
    Spawn {
        /// Which.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The configuration's key for it.
        key: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The VMM ended.
    #[error("the VM did not start: {0}")]
    Vmm(String),
    /// The virtio-fs daemon ended.
    #[error("virtiofsd ended before the guest was ready: {0}")]
    Virtiofsd(String),
    /// The agent did not get ready in time.
    #[error("the guest was not ready after {0:?} (`boot_timeout`){1}")]
    Timeout(Duration, String),
    /// The agent cannot be reached.
    #[error("the guest's agent does not answer: {0}")]
    Agent(String),
    /// The pod's network cannot be joined to the VM.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The guest cannot have the pod's network.
    #[error("the guest cannot set its network up: {0}")]
    GuestNetwork(String),
    /// A socket or file of the pod cannot be made.
    #[error("cannot prepare {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// How long a boot may take, all told.
#[derive(Clone, Copy)]
struct Limit {
    whole: Duration,
    end: Instant,
}

impl Limit {
    fn from_now(whole: Duration) -> Self {
        let end = Instant::now() + whole;
        Limit { whole, end }
    }
}

/// Boots the VM of `pod`, whose share is prepared, in this shape.
///
/// # Errors
/// When it does not come up; then nothing of it is left running.
pub(super) async fn boot(pod: &Pod, shape: Shape) -> Result<Vm, BootError> {
    let booted = boot_in_network(pod, shape).await;
    if booted.is_err() {
        pod.leave_network().await;
    }
    booted
}

async fn boot_in_network(pod: &Pod, shape: Shape) -> Result<Vm, BootError> {
    let cards = pod.join_network(shape.boot.vcpus).await?;
    if !cards.is_empty() {
        phase("network-joined", &pod.id);
    }
    let interfaces: Vec<_> = cards.iter().map(|card| card.interface.clone()).collect();

    let vsock = PathBuf::from(sockets::VSOCK);
    let ready_path = PathBuf::from(format!("{}_{CONTROL_PORT}", sockets::VSOCK));
    let ready = listen(&ready_path)?;

    let limit = Limit::from_now(pod.config.boot_timeout());
    let booted = try_boot(pod, shape, cards, ready, limit).await;
    // One connection is all that is listened for: later ones of the guest find nobody.
    let _ = std::fs::remove_file(&ready_path);
    let mut programs = booted?;
    let agent = match connect_agent(&vsock, limit).await {
        Ok(mut agent) => configure_network(&mut agent, interfaces, limit)
            .await
            .map(|()| agent),
        Err(error) => Err(error),
    };
    match agent {
        Ok(agent) => {
            pod.forward_ports(&vsock).await;
            Ok(Vm::new(programs, agent, vsock, shape, pod.keeper()))
        }
        Err(error) => {
            programs.kill().await;
            Err(error)
        }
    }
}

async fn try_boot(
    pod: &Pod,
    shape: Shape,
    cards: Vec<Card>,
    ready: UnixListener,
    limit: Limit,
) -> Result<Programs, BootError> {
    let (virtiofsd, fs_output) = start_virtiofsd(pod, listen(Path::new(sockets::FS))?).await?;
    save(pod, None, &virtiofsd)?;
    phase("virtiofsd-started", &pod.id);

    let (vmm, vmm_output, console) = start_vmm(pod, shape, cards).await?;
    save(pod, Some(&vmm), &virtiofsd)?;
    phase("vmm-started", &pod.id);

    let mut programs = Programs {
        vmm,
        virtiofsd,
        vmm_output,
        console,
        fs_output,
    };
    let failure = tokio::select! {
        biased;
        accepted = accept(ready) => match accepted {
            Ok(()) => {
                phase("agent-ready", &pod.id);
                return Ok(programs);
            }
            Err(source) => BootError::File { path: sockets::VSOCK.into(), source },
        },
        status = programs.vmm.wait() => BootError::Vmm(programs.why_vmm_ended(status).await),
        status = programs.virtiofsd.wait() => match programs.why_vmm_ended_too().await {
            Some(reason) => BootError::Vmm(reason),
            None => {
                programs.fs_output.finish().await;
                let line = programs.fs_output.last_line();
                BootError::Virtiofsd(line.unwrap_or_else(|| describe(status)))
            }
        },
        () = tokio::time::sleep_until(limit.end) => {
            let console = programs.console.last_line();
            let console = console.map(|line| format!("; last on its console: {line}"));
            BootError::Timeout(limit.whole, console.unwrap_or_default())
        }
    };
    programs.kill().await;
    Err(failure)
}

fn save(pod: &Pod, vmm: Option<&Running>, virtiofsd: &Running) -> Result<(), BootError> {
    let state = pod.state(vmm.map(Running::identity), Some(virtiofsd.identity()));
    pod.directory
        .save(&state)
        .map_err(|source| BootError::File {
            path: pod.directory.file("state.json"),
            source,
        })
}

async fn accept(listener: UnixListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)?
        .accept()
        .await?;
    Ok(())
}

/// A socket that listens at `path`, in place of one that an earlier VM may have left there.
fn listen(path: &Path) -> Result<UnixListener, BootError> {
    let make = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(path)
    };
    make().map_err(|source| BootError::File {
        path: path.into(),
        source,
    })
}

async fn start_virtiofsd(
    pod: &Pod,
    listener: UnixListener,
) -> Result<(Running, Output), BootError> {
    let program = &pod.config.virtiofsd;
    let mut command = Command::new(program);
    command
        .arg(format!("--fd={INHERITED_FD}"))
        .arg("--shared-dir")
        .arg(pod.share().served())
        // A mount namespace and root of its own; what is mounted into the share later spreads to it.
        .arg("--sandbox=namespace")
        // Snapshots are mostly overlayfs, of which there are no file handles.
        .arg("--inode-file-handles=never")
        .arg("--cache=auto")
        // A container's file capabilities are extended attributes.
        .arg("--xattr")
        .arg("--log-level=warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let started = pod
        .spawner
        .spawn(command, vec![OwnedFd::from(listener)])
        .await;
    let mut running = started.map_err(|source| BootError::Spawn {
        what: "the virtio-fs daemon",
        path: program.clone(),
        key: "virtiofsd",
        source,
    })?;
    let (_, stderr) = running.take_output();
    let output = copy(stderr, pod.directory.file("virtiofsd.log"))?;
    Ok((running, output))
}

async fn start_vmm(
    pod: &Pod,
    shape: Shape,
    cards: Vec<Card>,
) -> Result<(Running, Output, Output), BootError> {
    let config = &pod.config;
    let annotations = pod.annotations();
    let (vcpus, memory) = shape.arguments();
    let agent = AgentFile::of(config, annotations.kernel.is_some());
    let (flag, file) = agent.argument();
    let mut cmdline = CMDLINE.to_owned();
    if let Some(more) = agent.cmdline() {
        cmdline = format!("{cmdline} {more}");
    }
    if shape.may_have_more_memory() {
        cmdline.push_str(MOVABLE_MEMORY);
    }
    let more = [
        &config.cmdline_extra,
        &annotations.cmdline.unwrap_or_default(),
    ];
    for more in more.into_iter().filter(|more| !more.is_empty()) {
        cmdline = format!("{cmdline} {more}");
    }
    let mut command = Command::new(&config.vmm);
    command
        .args(["run", "--no-reboot"])
        .args(["--name", &pod.id])
        .arg("--kernel")
        .arg(annotations.kernel.as_ref().unwrap_or(&config.kernel))
        .arg(flag)
        .arg(file)
        .args(["--cmdline", &cmdline])
        .args(["--cpus", &vcpus])
        .args(["--memory", &memory])
        // Through a pipe, not to a file: a guest may print without end.
        .args(["--console", "stdio"])
        .args(["--api-socket", sockets::VMM])
        .args(["--vsock", &format!("socket={}", sockets::VSOCK)])
        .args(["--fs", &format!("tag={SHARE_TAG},socket={}", sockets::FS)])
        .current_dir(pod.directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for device in pod.promised() {
        command.args(["--device", device.as_str()]);
    }
    let mut taps = Vec::new();
    for card in cards {
        let first = INHERITED_FD as usize + taps.len();
        command.args(["--net", &net_argument(first, &card)]);
        taps.extend(card.queues);
    }
    let started = pod.spawner.spawn(command, taps).await;
    let mut running = started.map_err(|source| BootError::Spawn {
        what: "the VMM",
        path: config.vmm.clone(),
        key: "vmm",
        source,
    })?;
    let (stdout, stderr) = running.take_output();
    let output = copy(stderr, pod.directory.file("vmm.log"))?;
    let console = copy(stdout, pod.directory.file("console.log"))?;
    Ok((running, output, console))
}

/// A card as `orlop run --net` takes it, whose descriptors the VMM finds from `first` on.
fn net_argument(first: usize, card: &Card) -> String {
    let fds = (first..).take(card.queues.len());
    let fds: Vec<_> = fds.map(|fd| fd.to_string()).collect();
    format!("fd={},mac={}", fds.join(":"), card.mac)
}

fn copy(pipe: Option<OwnedFd>, path: PathBuf) -> Result<Output, BootError> {
    pipe.ok_or_else(|| io::Error::other("no pipe"))
        .and_then(|pipe| Output::copy(pipe, &path))
        .map_err(|source| BootError::File { path, source })
}

async fn connect_agent(
    vsock: &Path,
    limit: Limit,
) -> Result<AgentClient<tonic::transport::Channel>, BootError> {
    let connecting = connect::vsock(vsock, CONTROL_PORT);
    match tokio::time::timeout_at(limit.end, connecting).await {
        Ok(Ok(channel)) => Ok(AgentClient::new(channel)),
        Ok(Err(error)) => Err(BootError::Agent(crate::codes::one_line(&chain(&error)))),
        Err(_) => Err(BootError::Agent(format!(
            "no connection within {:?} (`boot_timeout`)",
            limit.whole
        ))),
    }
}

async fn configure_network(
    agent: &mut AgentClient<tonic::transport::Channel>,
    interfaces: Vec<Interface>,
    limit: Limit,
) -> Result<(), BootError> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let call = agent.configure_network(ConfigureNetworkRequest { interfaces });
    match tokio::time::timeout_at(limit.end, call).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(BootError::GuestNetwork(crate::codes::one_line(
            status.message(),
        ))),
        Err(_) => Err(BootError::GuestNetwork(format!(
            "no answer within {:?} (`boot_timeout`)",
            limit.whole
        ))),
    }
}

/// An error with its causes: tonic's says only "transport error" by itself.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// How a program ended, for people.
pub(super) fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("its exit status is unknown: {error}"),
    }
}
