//! A container: one that runs in the pod's VM, or the sandbox, which stands for the pod and runs nowhere: the CRI sandbox's own task, or what the
//! sandbox interface makes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::types::task::Status;
use tokio::task::JoinSet;

use super::process::{Phase, Process};
use crate::io::StdioPaths;
use crate::sandbox::Vm;

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle on this machine.
    pub bundle: PathBuf,
    /// Its own process.
    pub init: Arc<Process>,
    /// When it was made.
    pub created: SystemTime,
    body: Body,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    paused: AtomicBool,
    /// What is done for it in the background.
    chores: Mutex<JoinSet<()>>,
}

enum Body {
    Sandbox,
    /// One that is no task.
    ApiSandbox,
    InVm(Arc<Vm>),
}

impl Container {
    /// The CRI sandbox's container.
    pub fn sandbox(id: &str, bundle: PathBuf, stdio: StdioPaths) -> Self {
        Self::new(id, bundle, stdio, Body::Sandbox)
    }

    /// What the sandbox interface makes.
    pub fn api_sandbox(id: &str, bundle: PathBuf) -> Self {
        Self::new(id, bundle, StdioPaths::default(), Body::ApiSandbox)
    }

    /// Whether that has made it: then it is no task, and nobody hears of it by tasks' events.
    pub fn is_api_sandbox(&self) -> bool {
        matches!(self.body, Body::ApiSandbox)
    }

    /// A container in `vm`.
    pub fn in_vm(id: &str, bundle: PathBuf, stdio: StdioPaths, vm: Arc<Vm>) -> Self {
        Self::new(id, bundle, stdio, Body::InVm(vm))
    }

    fn new(id: &str, bundle: PathBuf, stdio: StdioPaths, body: Body) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            init: Arc::new(Process::new("", stdio)),
            created: SystemTime::now(),
            body,
            execs: Mutex::default(),
            paused: AtomicBool::new(false),
            chores: Mutex::default(),
        }
    }

    /// Has something done in the background, until the container is taken away.
    pub fn have_done(&self, chore: impl Future<Output = ()> + Send + 'static) {
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        chores.spawn(chore);
    }

    /// Ends what is done in the background.
    pub fn end_chores(&self) {
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        chores.abort_all();
    }

    /// The VM that it runs in; none for the sandbox's own.
    pub fn vm(&self) -> Option<&Arc<Vm>> {
        match &self.body {
            Body::Sandbox | Body::ApiSandbox => None,
            Body::InVm(vm) => Some(vm),
        }
    }

    /// The process that stands for it on this machine. A guest's process ids mean nothing here, and whoever
    /// acted on one would hit a stranger: the VMM stands for all that run in it, the shim for the sandbox.
    pub fn pid(&self) -> u32 {
        self.vm().map_or_else(std::process::id, |vm| vm.pid())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process `exec`; its own where that is empty.
    pub fn process(&self, exec: &str) -> Option<Arc<Process>> {
        if exec.is_empty() {
            return Some(self.init.clone());
        }
        self.execs().get(exec).cloned()
    }

    /// Adds a further process. Answers whether its id was free.
    pub fn add_exec(&self, process: Arc<Process>) -> bool {
        let mut execs = self.execs();
        if execs.contains_key(&process.exec) {
            return false;
        }
        execs.insert(process.exec.clone(), process);
        true
    }

    /// Forgets a further process.
    pub fn remove_exec(&self, exec: &str) {
        self.execs().remove(exec);
    }

    /// Notes whether it is paused.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// The state of one of its processes, in containerd's words.
    pub fn status(&self, process: &Process) -> Status {
        match process.phase() {
            Phase::Created => Status::CREATED,
            Phase::Running if self.paused.load(Ordering::Acquire) => Status::PAUSED,
            Phase::Running => Status::RUNNING,
            Phase::Stopped(_) => Status::STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::process::Exit;

    #[test]
    fn a_container_knows_its_processes_and_their_states() {
        let container = Container::sandbox("s", "/b".into(), StdioPaths::default());
        assert_eq!(container.pid(), std::process::id());
        assert_eq!(container.status(&container.init), Status::CREATED);
        container.init.started();
        container.set_paused(true);
        assert_eq!(container.status(&container.init), Status::PAUSED);
        container.init.stopped(Exit::now(0));
        assert_eq!(container.status(&container.init), Status::STOPPED);
        let exec = Arc::new(Process::new("e", StdioPaths::default()));
        assert!(container.add_exec(exec.clone()));
        assert!(!container.add_exec(exec));
        assert!(container.process("e").is_some());
        container.remove_exec("e");
        assert!(container.process("e").is_none());
    }
}
