//! Changing what a running container may have.

use containerd_shim_protos::api::UpdateTaskRequest;
use orlop_proto::agent::v1 as agent;

use super::Tasks;
use crate::codes::{Failure, Outcome};
use crate::sandbox::{Limits, Pod};
use crate::spec;

impl Tasks {
    /// Gives a container other limits: its control group in the guest, and the VM's size with it. The VM grows before and shrinks after
    /// the container may have more or less.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for a container that has ended, `INVALID_ARGUMENT` for limits that the pod cannot have. Nothing has changed then.
    pub async fn update(&self, request: UpdateTaskRequest) -> Outcome<()> {
        let id = request.id.as_str();
        let container = self.container(id)?;
        let update = spec::adapt_update(&request.resources.value)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        let Some(vm) = container.vm() else {
            // The sandbox's own has no process; what the pod may have its containers say.
            return Ok(());
        };
        if container.init.exit().is_some() {
            return Err(Failure::precondition(format!("container {id} has ended")));
        }
        // One after the other: the second must know what the first has made of it.
        let _turn = self.updating.lock().await;
        let before = self.pod.limits(id);
        let limits = before.changed(&update.resources);
        self.pod
            .admit(id, limits)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        if let Err(error) = self.pod.grow(vm).await {
            take_back(&self.pod, id, before);
            return Err(error.into());
        }
        let mut agent = vm.agent();
        let change = agent::UpdateRequest {
            container: id.to_owned(),
            resources: update.json,
        };
        let changed = vm.call(agent.update(change)).await;
        if changed.is_err() {
            take_back(&self.pod, id, before);
        }
        self.pod.shrink(vm).await;
        changed.map(drop)
    }
}

/// Not refused, for it was so before.
fn take_back(pod: &Pod, id: &str, before: Limits) {
    if let Err(error) = pod.admit(id, before) {
        log::warn!("container {id} counts as more than it is: {error}");
    }
}
