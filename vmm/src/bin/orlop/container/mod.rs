//! `orlop run --image`: a command of a container image, in a VM of its own.
//!
//! The image's root file system is a disk that is made once ([`orlop_vmm::oci`]); the VM is a process of its own ([`vm`]), and this one
//! speaks to the agent in its guest ([`session`]). The exit statuses are docker's.

pub mod exec;
pub mod flags;
mod session;
mod settings;
mod spec;
mod tail;
mod vm;
mod volume;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use orlop_proto::agent::IMAGE_CMDLINE;
use orlop_proto::agent::v1::CreateRequest;
use orlop_proto::agent::v1::not_executed::Reason;
use orlop_proto::not_executed;
use orlop_vmm::config::{ConsoleConfig, VmName};
use orlop_vmm::oci::Kept;
use orlop_vmm::state::StateDirectory;
use tonic::{Code, Status};

use self::session::Session;
pub use self::settings::Settings;
use self::vm::Vm;
use self::volume::Volumes;
use crate::guest_files::GuestFiles;
use crate::{client, image, run, virtiofsd};

/// The container in the VM; `orlop exec` names the VM alone.
const CONTAINER: &str = "main";
/// The serial number of the root file system's disk.
const DISK: &str = "orlop-image";

/// Runs a command of an image to its end.
pub fn run(arguments: run::Arguments) -> ExitCode {
    finish(try_run(arguments))
}

/// The exit status of a command, or of the failure to run it.
fn finish(result: anyhow::Result<u8>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        eprintln!("orlop: {}", message(&error).replace('\n', " "));
        status_of(&error)
    }))
}

fn message(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => format!("{error:#}"),
    }
}

/// As docker has it: 127 for a command that is not there, 126 for one that cannot be executed, 125 for what is our failure.
fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Status>().map(not_executed::reason) {
        Some(Reason::Missing) => 127,
        Some(Reason::Refused) => 126,
        Some(Reason::Unspecified) | None => 125,
    }
}

fn try_run(mut arguments: run::Arguments) -> anyhow::Result<u8> {
    let settings = Settings::load()?;
    let flags = arguments.container.clone();
    let volumes = Volumes::of(&flags.volumes)?;
    let kept = image::provide(flags.image.as_deref().unwrap_or_default())?;
    let name: VmName = match arguments.name.take() {
        Some(name) => name,
        None => format!("vm-{}", std::process::id()).parse()?,
    };
    let spec = spec::container(&kept, &flags, &volumes, name.as_str())?;
    let state = StateDirectory::of_user();
    state
        .make()
        .with_context(|| format!("cannot make {}", state.path().display()))?;
    let vsock = exec::vsock(&name);
    let limit = Duration::from_secs(settings.boot_timeout);
    arguments.shares.extend(volumes.shares()?);
    prepare(&mut arguments, &kept, &name, settings)?;
    let process = exec::Process::of(&spec, &name)?;
    let ended = process.clone();
    let vm = Vm::fork(&vsock, move || {
        let outcome = run::run(arguments).unwrap_or_else(|error| {
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        });
        // As we would, who may have been killed.
        ended.remove();
        outcome
    })?;
    process.save()?;
    let news = session::listen(flags.tty)?;
    let vm = vm.listen()?;
    let session = Session {
        vsock: &vsock,
        container: CONTAINER,
        exec: "",
        interactive: flags.interactive,
        tty: flags.tty,
    };
    let create = CreateRequest {
        container: CONTAINER.into(),
        bundle: String::new(),
        spec: serde_json::to_vec(&spec)?,
        stdio: Some(session.stdio()),
        root_disk: DISK.into(),
        disks: Vec::new(),
        pci_devices: Vec::new(),
        volumes: volumes.copies(),
    };
    let runtime = client::runtime()?;
    let status = runtime.block_on(attend(vm, limit, session, create, news));
    process.remove();
    runtime.shutdown_background();
    status
}

/// Whether the agent did not fail but is not there.
fn is_lost(error: &anyhow::Error) -> bool {
    let lost = [Code::Unavailable, Code::Unknown, Code::Cancelled];
    match error.downcast_ref::<Status>() {
        Some(status) => lost.contains(&status.code()),
        // A stream of the process that cannot be opened.
        None => error.is::<std::io::Error>(),
    }
}

/// Makes the flags those of the VM.
fn prepare(
    arguments: &mut run::Arguments,
    kept: &Kept,
    name: &VmName,
    settings: Settings,
) -> anyhow::Result<()> {
    arguments.container.image = None;
    bring_agent(arguments, &settings.guest);
    if std::env::var_os(virtiofsd::VARIABLE).is_none() {
        arguments.virtiofsd = arguments.virtiofsd.take().or(settings.virtiofsd);
    }
    arguments.name = Some(name.clone());
    let disk = kept.disk.to_str().context("the store's path is not text")?;
    arguments
        .disks
        .insert(0, format!("path={disk},readonly,serial={DISK}").parse()?);
    arguments.vsock = Some(format!("socket={}", exec::vsock(name).display()).parse()?);
    // Of which the end is told if the guest crashes.
    arguments.console = Some(ConsoleConfig::Stdio);
    arguments.no_reboot = true;
    Ok(())
}

/// Has the guest boot what the agent is in. A kernel of the user's may need no initramfs of ours, but the agent is there.
fn bring_agent(arguments: &mut run::Arguments, files: &GuestFiles) {
    let own = [&arguments.kernel, &arguments.initramfs, &arguments.pmem];
    match files.image() {
        Some(image) if own.into_iter().all(Option::is_none) => {
            arguments.pmem = Some(image.into());
            arguments.cmdline = Some(format!("{} {IMAGE_CMDLINE}", arguments.cmdline()));
        }
        _ => {
            let initramfs = &mut arguments.initramfs;
            initramfs.get_or_insert_with(|| files.initramfs().into());
        }
    }
    let kernel = &mut arguments.kernel;
    kernel.get_or_insert_with(|| files.kernel().into());
}

async fn attend(
    mut vm: Vm,
    limit: Duration,
    session: Session<'_>,
    create: CreateRequest,
    news: tokio::sync::mpsc::Receiver<session::News>,
) -> anyhow::Result<u8> {
    let mut agent = match vm.agent(limit).await {
        Ok(agent) => agent,
        Err(error) => {
            vm.end(None).await?;
            return Err(error);
        }
    };
    let status = match agent.create(create).await {
        Ok(_) => session.attend(agent.clone(), news).await,
        Err(status) => Err(status.into()),
    };
    if let Err(error) = &status
        && is_lost(error)
        && let Some(why) = vm.why_ended().await?
    {
        vm.end(None).await?;
        bail!("the VM ended before its command: {why}");
    }
    vm.end(Some(agent)).await?;
    status
}
