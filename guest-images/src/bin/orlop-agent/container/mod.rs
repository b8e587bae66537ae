//! The containers of the guest, and what is done with them.
//!
//! [`spec`] fits the host's spec to the guest, [`launch`] has libcontainer make the process, [`process`] keeps it, and [`control`]
//! is what can be done with it then; [`volumes`] are those that the guest keeps itself. Everything that changes a container goes through [`Containers`].

mod control;
mod devices;
mod disks;
mod launch;
mod places;
mod process;
mod root;
mod spec;
mod volumes;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_proto::agent::v1::{DiskDevice, Stdio, Volume};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

pub use self::devices::Address;
use self::launch::{Launch, launch, write_json};
pub use self::places::Places;
pub use self::process::Process;
pub use self::root::Root;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::heap;
use crate::ids::{Id, ProcessId};
use crate::reaper::{Reaper, exited};
use crate::runtime::Make;
use crate::stdio::fd::Fd;

/// Containers in a guest at most, and further processes that are known in one.
const MAX_CONTAINERS: usize = 256;
const MAX_PROCESSES: usize = 1024;

/// The agent's ends of a process's streams.
#[derive(Default)]
pub struct Streams {
    stdin: Option<Arc<Fd>>,
    stdout: Option<Arc<Fd>>,
    stderr: Option<Arc<Fd>>,
    console: Option<Arc<Fd>>,
}

impl Streams {
    fn of_terminal(master: Arc<Fd>, wanted: Stdio) -> Self {
        Self {
            stdin: wanted.stdin.then(|| master.clone()),
            stdout: wanted.stdout.then(|| master.clone()),
            stderr: None,
            console: Some(master),
        }
    }
}

/// All containers of the guest.
pub struct Containers {
    reaper: Arc<Reaper>,
    places: Places,
    known: Mutex<HashMap<Id, Entry>>,
}

enum Entry {
    /// Being made or taken away: the name is in use, and there is nothing to be done with it.
    Busy,
    Ready(Arc<Container>),
}

struct Container {
    init: Arc<Process>,
    cgroup: Cgroup,
    /// Whether its processes run behind a seccomp filter.
    filtered: bool,
    execs: Mutex<HashMap<Id, Arc<Process>>>,
    /// How many further processes are being made right now.
    launching: AtomicUsize,
}

/// What a container is to be.
pub struct Creation {
    /// Its name.
    pub id: Id,
    /// Where its root file system is.
    pub root: Root,
    /// The OCI spec.
    pub spec: Vec<u8>,
    /// The disks that its block devices are.
    pub disks: Vec<DiskDevice>,
    /// Devices of the host's whose nodes it gets.
    pub devices: Vec<Address>,
    /// The volumes that are kept for it in the guest's memory.
    pub volumes: Vec<Volume>,
    /// The streams that its process gets.
    pub stdio: Stdio,
}

impl Containers {
    /// None yet.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn new(reaper: Arc<Reaper>, places: Places) -> io::Result<Self> {
        fs::create_dir_all(&places.state)?;
        fs::create_dir_all(&places.bundles)?;
        fs::create_dir_all(&places.volumes)?;
        Ok(Self {
            reaper,
            places,
            known: Mutex::default(),
        })
    }

    /// Makes a container; its process waits to be started. Returns its number.
    ///
    /// # Errors
    /// As the interface says. After an error nothing is left.
    pub async fn create(&self, creation: Creation) -> Result<u32> {
        let rootfs = creation
            .root
            .path(&self.places.share, &self.places.bundle(&creation.id));
        let cgroup = Cgroup::of(&creation.id);
        let mut guest = spec::adapt(&creation.spec, &rootfs, &cgroup.spec_path())?;
        disks::give(&mut guest.spec, &creation.disks).await?;
        self.reserve(&creation.id)?;
        devices::add(&mut guest.spec, &creation.devices).await;
        let made = self.make(&creation, &guest, &cgroup).await;
        let mut known = self.known();
        match made {
            Ok((init, pid)) => {
                let container = Container {
                    init,
                    cgroup,
                    filtered: guest.filtered,
                    execs: Mutex::default(),
                    launching: AtomicUsize::new(0),
                };
                known.insert(creation.id, Entry::Ready(Arc::new(container)));
                Ok(pid)
            }
            Err(error) => {
                drop(known);
                self.clean(&creation.id, &cgroup).await;
                self.known().remove(&creation.id);
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        creation: &Creation,
        guest: &spec::GuestSpec,
        cgroup: &Cgroup,
    ) -> Result<(Arc<Process>, u32)> {
        spec::apply_sysctls(&guest.guest_sysctls)?;
        // What an agent's earlier life or a failure may have left.
        self.clean(&creation.id, cgroup).await;
        let bundle = self.places.bundle(&creation.id);
        fs::create_dir_all(&bundle).map_err(|error| Error::system(bundle.display(), error))?;
        creation.root.mount(&bundle)?;
        volumes::make(&self.places.volumes(&creation.id), &creation.volumes)?;
        write_json(&bundle.join("config.json"), &guest.spec)?;
        let process = guest.spec.process().as_ref();
        let terminal = process.is_some_and(|process| process.terminal().unwrap_or(false));
        let id = ProcessId {
            container: creation.id.clone(),
            exec: None,
        };
        let init = Arc::new(Process::new(id.clone(), terminal, creation.stdio));
        let request = Launch {
            id: &id,
            make: Make::Container,
            terminal,
            stdio: creation.stdio,
        };
        let live = init
            .make(launch(&self.reaper, &self.places, request))
            .await?;
        // Without a process namespace of its own, a container's other processes outlive its first.
        let (mut exit, group) = (live.exit_watch(), cgroup.clone());
        tokio::spawn(async move {
            exited(&mut exit).await;
            let _ = group.kill();
        });
        Ok((init, live.pid.unsigned_abs()))
    }

    /// Makes a further process known.
    ///
    /// # Errors
    /// As the interface says.
    pub fn exec(&self, container: &Id, exec: Id, process: &[u8], stdio: Stdio) -> Result<()> {
        let found = self.container(container)?;
        if found.init.is_over() {
            return Err(Error::State(format!("container {container} has exited")));
        }
        let process = spec::process(process, found.filtered)?;
        let id = ProcessId {
            container: container.clone(),
            exec: Some(exec.clone()),
        };
        let mut execs = found.execs();
        if execs.contains_key(&exec) {
            return Err(Error::Exists(format!("{id} exists already")));
        }
        if execs.len() >= MAX_PROCESSES {
            return Err(Error::TooMany(format!(
                "container {container} has {MAX_PROCESSES} processes that were not deleted"
            )));
        }
        write_json(&self.places.process_file(&id, "process"), &process)?;
        let terminal = process.terminal().unwrap_or(false);
        execs.insert(exec, Arc::new(Process::new(id, terminal, stdio)));
        Ok(())
    }

    /// Lets a process run. Returns its number.
    ///
    /// # Errors
    /// As the interface says.
    pub async fn start(&self, id: &ProcessId) -> Result<u32> {
        let container = self.container(&id.container)?;
        let process = container.process(id)?;
        if id.exec.is_none() {
            let (live, report) = process.start()?;
            let socket = self
                .places
                .state
                .join(id.container.as_str())
                .join("notify.sock");
            open_gate(&socket)
                .await
                .map_err(|error| Error::system(format_args!("{id} cannot be started"), error))?;
            report.executed(&mut live.exit_watch()).await?;
            return Ok(live.pid.unsigned_abs());
        }
        if !container.init.is_started() || container.init.is_over() {
            return Err(Error::State(format!(
                "container {} is not running",
                id.container
            )));
        }
        if container.cgroup.is_frozen() {
            return Err(Error::State(format!(
                "container {} is paused",
                id.container
            )));
        }
        let file = self.places.process_file(id, "process");
        let request = Launch {
            id,
            make: Make::Process { file: file.clone() },
            terminal: process.terminal,
            stdio: process.stdio,
        };
        container.launching.fetch_add(1, Ordering::Relaxed);
        let made = process
            .make(launch(&self.reaper, &self.places, request))
            .await;
        if container.launching.fetch_sub(1, Ordering::Relaxed) == 1 {
            remove_leftovers(&self.places.state.join(id.container.as_str()));
        }
        let _ = fs::remove_file(file);
        let live = made?;
        process.set_started();
        Ok(live.pid.unsigned_abs())
    }

    /// Forgets a process that is over; with a container's own, the container goes.
    ///
    /// # Errors
    /// As the interface says.
    pub async fn delete(&self, id: &ProcessId) -> Result<()> {
        let container = self.container(&id.container)?;
        let process = container.process(id)?;
        if !process.is_over() {
            return Err(Error::State(format!("{id} has not exited")));
        }
        if let Some(exec) = &id.exec {
            let was_last = {
                let mut execs = container.execs();
                execs.remove(exec);
                execs.is_empty()
            };
            let _ = fs::remove_file(self.places.process_file(id, "process"));
            if was_last {
                heap::give_back();
            }
            return Ok(());
        }
        match self.known().insert(id.container.clone(), Entry::Busy) {
            Some(Entry::Ready(_)) => {}
            _ => {
                return Err(Error::State(format!("{id} is being deleted")));
            }
        }
        self.clean(&id.container, &container.cgroup).await;
        self.known().remove(&id.container);
        Ok(())
    }

    /// Finds a process.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn process(&self, id: &ProcessId) -> Result<Arc<Process>> {
        self.container(&id.container)?.process(id)
    }

    fn container(&self, id: &Id) -> Result<Arc<Container>> {
        match self.known().get(id) {
            Some(Entry::Ready(container)) => Ok(container.clone()),
            Some(Entry::Busy) | None => {
                Err(Error::NotFound(format!("container {id} does not exist")))
            }
        }
    }

    fn reserve(&self, id: &Id) -> Result<()> {
        let mut known = self.known();
        if known.contains_key(id) {
            return Err(Error::Exists(format!("container {id} exists already")));
        }
        if known.len() >= MAX_CONTAINERS {
            return Err(Error::TooMany(format!(
                "the guest has {MAX_CONTAINERS} containers already"
            )));
        }
        known.insert(id.clone(), Entry::Busy);
        Ok(())
    }

    /// Takes away what a container leaves: processes, control group, files. Its mounts go with its namespace.
    async fn clean(&self, id: &Id, cgroup: &Cgroup) {
        if let Err(error) = cgroup.remove().await {
            log::warn!("the control group of container {id} cannot be removed: {error}");
        }
        Root::unmount(&self.places.bundle(id));
        for directory in [
            self.places.state.join(id.as_str()),
            self.places.bundle(id),
            self.places.volumes(id),
        ] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!("{} cannot be removed: {error}", directory.display());
                }
                _ => {}
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Id, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    fn process(&self, id: &ProcessId) -> Result<Arc<Process>> {
        match &id.exec {
            None => Ok(self.init.clone()),
            Some(exec) => self
                .execs()
                .get(exec)
                .cloned()
                .ok_or_else(|| Error::NotFound(format!("{id} does not exist"))),
        }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<Id, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what libcontainer leaves in a container's state for every further process: its sockets. None must be in the making.
fn remove_leftovers(state: &Path) {
    for entry in fs::read_dir(state).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"tenant-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Tells a container's process that it may run: libcontainer has it wait at a socket.
async fn open_gate(socket: &Path) -> io::Result<()> {
    let mut gate = UnixStream::connect(socket).await?;
    gate.write_all(b"start").await?;
    gate.shutdown().await
}
