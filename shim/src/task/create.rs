//! Making a container: its files on this machine, the VM if there is none yet, the container in the guest, its streams.
//!
//! Each step has its undoing, and a failure anywhere undoes what was done before: afterwards there is no mount, no
//! directory, no container in the guest, and no VM that booted for this container alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Mount};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use nix::mount::MsFlags;
use oci_spec::runtime::Spec;
use orlop_proto::agent::v1::{CreateRequest, DeleteRequest, SignalRequest, WaitRequest};

use super::Tasks;
use super::container::Container;
use super::process::{Exit, KILLED};
use crate::bundle::{self, Role};
use crate::codes::{Failure, Outcome};
use crate::events::Event;
use crate::io::{StdioPaths, Streams};
use crate::logging::phase;
use crate::mounts::MountRequest;
use crate::network::Namespace;
use crate::sandbox::{Limits, PodError, Share, ShareError, Vm};
use crate::spec::{self, Annotations, GuestSpec, HostDevice, Network, PodSpec};
use crate::volumes::{self, Volume};

/// How long each step of taking a container out of the guest may take.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);

impl Tasks {
    /// Makes a container.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for an id in use, `INVALID_ARGUMENT` for a spec that no guest can run, otherwise what failed.
    pub async fn create(
        self: &Arc<Self>,
        request: CreateTaskRequest,
    ) -> Outcome<CreateTaskResponse> {
        let id = request.id.as_str();
        phase("create-received", id);
        if !crate::cli::is_name(id) {
            return Err(Failure::invalid(format!("{id:?} is not a container's id")));
        }
        if !request.checkpoint.is_empty() {
            return Err(Failure::unimplemented(
                "restoring a checkpoint is not supported",
            ));
        }
        let bundle = PathBuf::from(&request.bundle);
        let spec = bundle::spec(&bundle).map_err(|error| Failure::invalid(error.to_string()))?;
        let role = bundle::role_of(&spec.annotations().clone().unwrap_or_default())
            .map_err(|error| Failure::invalid(error.to_string()))?;
        let role = match role {
            Role::Single if self.takes_in(id) => Role::Workload {
                sandbox: self.pod.id.clone(),
            },
            role => role,
        };
        if role.sandbox_id(id) != self.pod.id {
            let what = format!("container {id} is not of pod {}", self.pod.id);
            return Err(Failure::invalid(what));
        }
        let taken = || Failure::already_exists(format!("container {id} exists"));
        let in_vm = role != Role::Sandbox;
        let reservation = self.registry.reserve(id, in_vm).ok_or_else(taken)?;
        if !matches!(role, Role::Workload { .. }) {
            // A workload's spec names the sandbox's namespace by way of a process, which is none of the guest's.
            let network =
                Network::of(&spec).map_err(|error| Failure::invalid(error.to_string()))?;
            self.set_network(network)?;
            self.set_annotations(&spec.annotations().clone().unwrap_or_default())?;
        }
        let container = if in_vm {
            self.create_in_vm(&request, &bundle, &spec).await?
        } else {
            self.pod.set_spec(PodSpec::of_sandbox(&spec));
            Container::sandbox(id, bundle, stdio(&request))
        };
        let container = Arc::new(container);
        reservation.fill(container.clone());
        phase("created", id);
        self.events.publish(&created(&request, &container));
        self.supervise(&container, &container.init);
        Ok(CreateTaskResponse {
            pid: container.pid(),
            ..Default::default()
        })
    }

    /// Notes which network the pod is to have, if it can have it.
    pub(super) fn set_network(&self, network: Network) -> Outcome<()> {
        if let Network::Namespace(path) = &network {
            Namespace::open(path).map_err(|error| Failure::invalid(error.to_string()))?;
        }
        self.pod.set_network(network);
        Ok(())
    }

    /// Notes what the pod's annotations ask for, if it can have it.
    pub(super) fn set_annotations(&self, annotations: &HashMap<String, String>) -> Outcome<()> {
        let annotations = Annotations::of(annotations, self.pod.allowed_annotations());
        let annotations = annotations.map_err(|error| Failure::invalid(error.to_string()))?;
        let fits = self.pod.set_annotations(annotations);
        fits.map_err(|error| Failure::invalid(error.to_string()))
    }

    async fn create_in_vm(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        bundle: &Path,
        spec: &Spec,
    ) -> Outcome<Container> {
        let id = request.id.as_str();
        let volumes = volumes_of(spec).await;
        let copied: Vec<_> = volumes.iter().map(|volume| volume.source.clone()).collect();
        let guest = spec::adapt(spec, id, &self.pod.spec(), &copied)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        let devices =
            spec::host_devices(spec).map_err(|error| Failure::invalid(error.to_string()))?;
        let rootfs = rootfs(request, bundle, spec)?;
        let linux = spec.linux().as_ref();
        let limits = Limits::of(linux.and_then(|linux| linux.resources().as_ref()));
        let admitted = self.pod.admit(id, limits);
        admitted.map_err(|error| Failure::invalid(error.to_string()))?;
        self.pod.promise(id, devices.clone());
        if let Err(failure) = self.share_files(id, rootfs, &guest).await {
            self.pod.dismiss(id);
            return Err(failure);
        }
        let made = self.boot_and_make(request, &guest, &devices, &volumes);
        match made.await {
            Ok(vm) => {
                let container = Container::in_vm(id, bundle.into(), stdio(request), vm.clone());
                if !volumes.is_empty() {
                    container.have_done(volumes::follow(id.to_owned(), volumes, vm));
                }
                let streams = self.open_streams(&container).await;
                match streams {
                    Ok(()) => Ok(container),
                    Err(failure) => {
                        if let Some(vm) = container.vm() {
                            remove_from_guest(vm, id, true).await;
                        }
                        self.undo(id).await;
                        Err(failure)
                    }
                }
            }
            Err(failure) => {
                self.undo(id).await;
                Err(failure)
            }
        }
    }

    async fn share_files(
        &self,
        id: &str,
        rootfs: Vec<MountRequest>,
        guest: &GuestSpec,
    ) -> Outcome<()> {
        let (share, id, binds) = (self.pod.share(), id.to_owned(), guest.binds.clone());
        let sharing = tokio::task::spawn_blocking(move || {
            share.prepare()?;
            share.add(&id, &rootfs, &binds)
        });
        let shared = sharing.await.unwrap_or(Err(ShareError::Interrupted));
        shared.map_err(|error| Failure::internal(error.to_string()))
    }

    async fn boot_and_make(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        guest: &GuestSpec,
        devices: &[HostDevice],
        volumes: &[Volume],
    ) -> Outcome<Arc<Vm>> {
        let id = request.id.as_str();
        let lease = self.pod.vm().await.map_err(|error| match error {
            PodError::Ended(_) | PodError::Closed => Failure::unavailable(error.to_string()),
            PodError::Boot(..) | PodError::Share(_) | PodError::Size(_) => {
                Failure::internal(error.to_string())
            }
        })?;
        if lease.booted {
            self.end_sandbox_with(lease.vm.clone());
        } else {
            self.pod.grow(&lease.vm).await?;
        }
        let made = self.make(request, guest, devices, volumes, &lease.vm);
        match made.await {
            Ok(()) => Ok(lease.vm),
            Err(failure) => {
                lease.vm.take_disks(id).await;
                Err(failure)
            }
        }
    }

    async fn make(
        &self,
        request: &CreateTaskRequest,
        guest: &GuestSpec,
        devices: &[HostDevice],
        volumes: &[Volume],
        vm: &Vm,
    ) -> Outcome<()> {
        let id = request.id.as_str();
        let create = CreateRequest {
            container: id.to_owned(),
            bundle: id.to_owned(),
            root_disk: String::new(),
            disks: vm.give_disks(id, &guest.disks).await?,
            pci_devices: self.pod.places(vm, devices).await?,
            spec: guest
                .to_json()
                .map_err(|error| Failure::internal(error.to_string()))?,
            stdio: Some(stdio(request).wanted()),
            volumes: volumes
                .iter()
                .map(|volume| volume.content.clone())
                .collect(),
        };
        let mut agent = vm.agent();
        vm.call(agent.create(create)).await.map(drop)
    }

    async fn open_streams(&self, container: &Container) -> Outcome<()> {
        let Some(vm) = container.vm() else {
            return Ok(());
        };
        let init = &container.init;
        let streams = Streams::open(vm.vsock(), &container.id, "", &init.stdio)
            .await
            .map_err(|error| Failure::internal(error.to_string()))?;
        init.set_streams(Some(Arc::new(streams)));
        Ok(())
    }

    /// Takes back a container that was not made: its files, and the VM if nobody else is in it or about to be.
    async fn undo(&self, id: &str) {
        self.pod.dismiss(id);
        self.pod.release(|| self.registry.none_in_vm_but(id)).await;
        remove_files(self.pod.share(), id).await;
    }

    /// When the VM dies, the sandbox has died, although it has no process in there.
    fn end_sandbox_with(self: &Arc<Self>, vm: Arc<Vm>) {
        let tasks = self.clone();
        tokio::spawn(async move {
            let reason = vm.ended().await;
            if vm.was_asked_to_end() {
                return;
            }
            log::error!("the VM of pod {} has ended: {reason}", tasks.pod.id);
            if let Some(sandbox) = tasks.registry.sandbox() {
                tasks
                    .ended(&sandbox, &sandbox.init, Exit::now(KILLED))
                    .await;
            }
        });
    }
}

/// The volumes of which the guest is given copies.
async fn volumes_of(spec: &Spec) -> Vec<Volume> {
    let spec = spec.clone();
    let reading = tokio::task::spawn_blocking(move || volumes::of(&spec));
    reading.await.unwrap_or_default()
}

/// Unmounts a container's files and removes its directory of the share.
pub(super) async fn remove_files(share: Share, id: &str) {
    let name = id.to_owned();
    let removing = tokio::task::spawn_blocking(move || share.remove(&name));
    if let Ok(Err(error)) = removing.await {
        log::error!("cannot remove the files of {id}: {error}");
    }
}

/// Takes a container out of the guest; first kills it, if `kill` says so. What fails is logged: there is nothing else
/// to be done about it, and the VM's end settles it.
pub(super) async fn remove_from_guest(vm: &Vm, id: &str, kill: bool) {
    if kill {
        let (mut signaller, mut waiter) = (vm.agent(), vm.agent());
        let signal = SignalRequest {
            container: id.to_owned(),
            exec: String::new(),
            signal: libc::SIGKILL.unsigned_abs(),
            all: true,
        };
        // It may have ended by itself meanwhile.
        let _ = vm.call_within(UNDO_TIMEOUT, signaller.signal(signal)).await;
        let wait = WaitRequest {
            container: id.to_owned(),
            exec: String::new(),
        };
        let _ = vm.call_within(UNDO_TIMEOUT, waiter.wait(wait)).await;
    }
    let mut agent = vm.agent();
    let delete = DeleteRequest {
        container: id.to_owned(),
        exec: String::new(),
    };
    match vm.call_within(UNDO_TIMEOUT, agent.delete(delete)).await {
        Err(failure) if !failure.is_not_found() && vm.ended_now().is_none() => {
            log::error!("cannot remove {id} from the guest: {failure}");
        }
        _ => {}
    }
    vm.take_disks(id).await;
}

fn stdio(request: &CreateTaskRequest) -> StdioPaths {
    StdioPaths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    }
}

/// What makes up the root file system: the mounts that containerd says, else the directory of the bundle.
fn rootfs(request: &CreateTaskRequest, bundle: &Path, spec: &Spec) -> Outcome<Vec<MountRequest>> {
    if !request.rootfs.is_empty() {
        let parse = |mount: &Mount| MountRequest::parse(mount);
        return request
            .rootfs
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::invalid(error.to_string()));
    }
    let root = spec.root().as_ref().map(|root| root.path().clone());
    let source = bundle.join(root.unwrap_or_else(|| PathBuf::from("rootfs")));
    Ok(vec![MountRequest {
        kind: "bind".to_owned(),
        source,
        flags: MsFlags::MS_BIND | MsFlags::MS_REC,
        data: String::new(),
    }])
}

fn created(request: &CreateTaskRequest, container: &Container) -> Event {
    Event::Create(TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..TaskIO::default()
        }),
        pid: container.pid(),
        ..TaskCreate::default()
    })
}
