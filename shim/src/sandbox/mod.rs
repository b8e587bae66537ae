//! A pod on this machine: its state directory, the share that its guest sees, and its VM.
//!
//! The VM boots when the first container that runs in it is created, not before: a pod that never gets a container
//! costs nothing but the shim. [`Pod`] is the one owner of that decision; whether there is a VM is a [`Slot`]:
//!
//! ```text
//!             boot                    the last container of a lone pod is deleted,
//!   Empty ───────────► Running ─────► or the sandbox is killed ─────► Closed
//!     ▲                 │   │
//!     └─────────────────┘   └────────► Ended (the VMM died, the guest powered off)
//!      the first container failed
//! ```

mod agent_file;
mod boot;
mod control;
mod demand;
mod devices;
mod disks;
pub mod etc;
mod files;
mod forward;
mod keep;
mod network;
mod output;
mod resize;
mod shape;
pub mod share;
pub mod size;
pub mod state;
mod vm;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::address::ShimSocket;
use crate::cgroup::{Brim, Cgroup, Home};
use crate::config::Config;
use crate::network::Joined;
use crate::process::identity::ProcessIdentity;
use crate::process::spawn::Spawner;
use crate::spec::{Network, PodSpec};

pub use boot::BootError;
use demand::Demand;
use forward::Forwarding;
use keep::{Keeper, Kept};
pub use share::{Share, ShareError};
pub use size::{Limits, SizeError};
pub use state::{PodState, StateDir};
pub use vm::Vm;

/// How long the last of a pod's processes may be in its cgroup once they have ended.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A pod.
pub struct Pod {
    /// Its id: the sandbox's, or the lone container's.
    pub id: String,
    /// Its directory.
    pub directory: StateDir,
    config: Config,
    spawner: Spawner,
    socket: ShimSocket,
    slot: tokio::sync::Mutex<Slot>,
    spec: Mutex<PodSpec>,
    network: Mutex<Network>,
    joined: Mutex<Option<Joined>>,
    forwarding: Mutex<Option<Forwarding>>,
    demand: Mutex<Demand>,
    cgroup: Mutex<Option<(Cgroup, Home)>>,
}

enum Slot {
    Empty,
    Running(Arc<Vm>),
    Ended(String),
    Closed,
}

/// Why a pod has no VM to offer.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// It did not come up.
    #[error("{0}{1}")]
    Boot(BootError, Kept),
    /// It would be larger than it may be.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The share cannot be set up.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// It has ended.
    #[error("the pod's VM has ended: {0}")]
    Ended(String),
    /// The pod is being taken down.
    #[error("the pod has been stopped")]
    Closed,
}

/// A pod's VM, for a caller that needs one.
pub struct Lease {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Whether it was booted for this caller.
    pub booted: bool,
}

impl Pod {
    /// A pod without a VM.
    pub fn new(
        id: &str,
        config: Config,
        directory: StateDir,
        socket: ShimSocket,
        spawner: Spawner,
    ) -> Self {
        Self {
            id: id.to_owned(),
            directory,
            config,
            spawner,
            socket,
            slot: tokio::sync::Mutex::new(Slot::Empty),
            spec: Mutex::default(),
            network: Mutex::default(),
            joined: Mutex::default(),
            forwarding: Mutex::default(),
            demand: Mutex::default(),
            cgroup: Mutex::default(),
        }
    }

    /// The state file's content for a pod whose VM consists of these processes.
    fn state(&self, vmm: Option<ProcessIdentity>, virtiofsd: Option<ProcessIdentity>) -> PodState {
        PodState {
            shim: ProcessIdentity::of(std::process::id()),
            socket: self.socket.path().into(),
            vmm,
            virtiofsd,
            network: lock(&self.joined).clone(),
            pod: self.annotations().name,
            cgroup: lock(&self.cgroup)
                .as_ref()
                .map(|(cgroup, _)| cgroup.clone()),
        }
    }

    /// Makes the directory and writes down who serves the pod.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(&self) -> std::io::Result<()> {
        self.directory.create()?;
        self.directory.save(&self.state(None, None))
    }

    /// Notes the cgroup that this process has gone into for the pod, and where it was before.
    pub fn set_cgroup(&self, cgroup: Cgroup, home: Home) {
        *lock(&self.cgroup) = Some((cgroup, home));
    }

    /// Removes the pod's cgroup, when nothing but this process is in it any more.
    async fn leave_cgroup(&self) {
        let Some((cgroup, home)) = lock(&self.cgroup).take() else {
            return;
        };
        let leaving = tokio::task::spawn_blocking(move || {
            home.enter();
            cgroup.remove(Instant::now() + CGROUP_TIMEOUT)
        });
        if let Ok(Err(error)) = leaving.await {
            log::error!("cannot remove the pod's cgroup: {error}");
        }
    }

    /// What the pod's containers share.
    pub fn spec(&self) -> PodSpec {
        lock(&self.spec).clone()
    }

    /// Sets what the pod's containers share.
    pub fn set_spec(&self, spec: PodSpec) {
        *lock(&self.spec) = spec;
    }

    /// Sets the network that the pod's VM is to have when it boots.
    pub fn set_network(&self, network: Network) {
        *lock(&self.network) = network;
    }

    /// Keeps what the VM has said, if it fails.
    fn keeper(&self) -> Keeper {
        Keeper {
            directory: self.directory.clone(),
            logs: self.config.logs.clone(),
            name: keep::file_name(self.annotations().name.as_ref(), &self.id),
        }
    }

    /// The directory that the guest sees.
    pub fn share(&self) -> Share {
        Share::of(&self.directory)
    }

    /// The pod's VM, booted if there is none yet.
    ///
    /// # Errors
    /// When it does not come up, or has been and is no more.
    pub async fn vm(&self) -> Result<Lease, PodError> {
        let mut slot = self.slot.lock().await;
        match &*slot {
            Slot::Running(vm) => {
                if let Some(reason) = vm.ended_now() {
                    *slot = Slot::Ended(reason.clone());
                    return Err(PodError::Ended(reason));
                }
                Ok(Lease {
                    vm: vm.clone(),
                    booted: false,
                })
            }
            Slot::Empty => {
                let share = self.share();
                tokio::task::spawn_blocking(move || share.prepare())
                    .await
                    .unwrap_or(Err(ShareError::Interrupted))?;
                let shape = self.shape()?;
                let booted = boot::boot(self, shape).await;
                let booted = booted.map_err(|error| PodError::Boot(error, self.keeper().keep()));
                let vm = Arc::new(booted?);
                *slot = Slot::Running(vm.clone());
                self.keep_room_for_files(&vm);
                Ok(Lease { vm, booted: true })
            }
            Slot::Ended(reason) => Err(PodError::Ended(reason.clone())),
            Slot::Closed => Err(PodError::Closed),
        }
    }

    /// Sees to it that what the VM's guest knows of files does not fill the pod's memory.
    fn keep_room_for_files(&self, vm: &Vm) {
        let group = lock(&self.cgroup);
        let brim = group.as_ref().map(|(group, _)| Brim::set(group));
        match brim.transpose().map(Option::flatten) {
            Ok(Some(brim)) => {
                tokio::spawn(files::keep_room(brim, vm.agent(), vm.end()));
            }
            Ok(None) => {}
            Err(error) => log::warn!("the pod's memory is not watched: {error}"),
        }
    }

    /// Shuts the VM down if `unused` still says so when no VM can be booted meanwhile; a later caller of [`Pod::vm`] boots anew.
    pub async fn release(&self, unused: impl FnOnce() -> bool) {
        let mut slot = self.slot.lock().await;
        if !unused() {
            return;
        }
        if let Slot::Running(vm) = &*slot {
            vm.shut_down().await;
            self.leave_network().await;
            *slot = Slot::Empty;
        }
    }

    /// Shuts the VM down for good, and removes what the pod has on this machine. May be called again.
    pub async fn close(&self) {
        let mut slot = self.slot.lock().await;
        if let Slot::Running(vm) = &*slot {
            vm.shut_down().await;
            crate::logging::phase("vm-stopped", &self.id);
        }
        if !matches!(*slot, Slot::Closed) {
            self.leave_network().await;
            self.leave_cgroup().await;
            let directory = self.directory.clone();
            let removed = tokio::task::spawn_blocking(move || directory.remove()).await;
            if let Ok(Err(error)) = removed {
                log::error!("cannot remove the pod's state: {error}");
            }
        }
        *slot = Slot::Closed;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
