//! Tasks: containerd's word for a container that may run.
//!
//! - [`service`] and [`sandbox_service`] are the ttrpc interfaces, as thin as they can be;
//! - [`Tasks`] is what they call: [`create`] makes a container, [`lifecycle`] starts, signals and deletes, [`query`] answers
//!   questions, [`update`] changes what a container may have, [`sandbox`] makes and ends what stands for the pod where that is no task;
//! - [`registry`] holds the containers by id, [`container`] and [`process`] are what is held;
//! - [`supervise`] waits for a process's end, and [`memory`] for processes that are killed for want of memory.
//!
//! Every call runs to its end, although its caller may give up: a container half made is worse than one that nobody
//! asked for any more.

pub mod container;
mod create;
mod lifecycle;
mod memory;
pub mod process;
mod query;
pub mod registry;
mod sandbox;
pub mod sandbox_service;
pub mod service;
mod supervise;
mod update;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::codes::{Failure, Outcome};
use crate::events::Publisher;
use crate::sandbox::Pod;
use container::Container;
use process::Process;
use registry::Registry;

/// The tasks of a pod.
pub struct Tasks {
    pod: Arc<Pod>,
    registry: Registry,
    events: Publisher,
    exit: Arc<Notify>,
    /// Held by whoever changes what a container may have.
    updating: tokio::sync::Mutex<()>,
}

impl Tasks {
    /// No tasks yet. `exit` is told when the shim is to end.
    pub fn new(pod: Arc<Pod>, events: Publisher, exit: Arc<Notify>) -> Self {
        Self {
            pod,
            registry: Registry::default(),
            events,
            exit,
            updating: tokio::sync::Mutex::default(),
        }
    }

    fn container(&self, id: &str) -> Outcome<Arc<Container>> {
        self.registry
            .get(id)
            .ok_or_else(|| Failure::not_found(format!("no container {id}")))
    }

    /// The process `exec` of container `id`; its own where `exec` is empty.
    fn process(&self, id: &str, exec: &str) -> Outcome<(Arc<Container>, Arc<Process>)> {
        let container = self.container(id)?;
        let process = container
            .process(exec)
            .ok_or_else(|| Failure::not_found(format!("no process {exec} in container {id}")))?;
        Ok((container, process))
    }
}
