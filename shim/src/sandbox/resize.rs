//! Giving the pod's running VM another size, by its control socket.

use std::time::Duration;

use orlop_proto::vmm::v1::{ResizeRequest, WaitOperationRequest};

use super::Pod;
use super::control::{self, ANSWER_TIMEOUT};
use super::shape::{NoRoom, Way};
use super::size::{Size, SizeError};
use super::vm::Vm;
use crate::codes::{Failure, Outcome};

/// How long a guest may take to have the memory that it is given.
const GROW_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it is to try to do without.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a VM does not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The pod may not have as much.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The VM has no room for as much.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The VMM or the guest did not do it.
    #[error("the pod's VM did not come to {vcpus} vCPUs and {memory} of memory: {why}", vcpus = .size.vcpus, memory = .size.memory)]
    Vmm {
        /// What was wanted.
        size: Size,
        /// What came instead.
        why: String,
    },
}

impl From<ResizeError> for Failure {
    fn from(error: ResizeError) -> Self {
        match error {
            ResizeError::Size(_) | ResizeError::NoRoom(_) => Failure::invalid(error.to_string()),
            ResizeError::Vmm { .. } => Failure::internal(error.to_string()),
        }
    }
}

impl Pod {
    /// Has the VM grow to what is in the pod now. Answers when the guest has the memory.
    ///
    /// # Errors
    /// When there is no room for it, or the guest does not take it.
    pub async fn grow(&self, vm: &Vm) -> Result<(), ResizeError> {
        self.resize(vm, Way::Grow).await
    }

    /// Has the VM shrink to what is in the pod now, as far as the guest can. Nobody waits for it.
    pub async fn shrink(&self, vm: &Vm) {
        if let Err(error) = self.resize(vm, Way::Shrink).await {
            log::warn!("the VM stays as large as it is: {error}");
        }
    }

    async fn resize(&self, vm: &Vm, way: Way) -> Result<(), ResizeError> {
        let mut shape = vm.shape().await;
        // What is in the pod is looked at only now: whoever had the shape before may have changed it.
        let Some(size) = shape.on_the_way(self.wanted()?, way)? else {
            return Ok(());
        };
        log::info!(
            "resize vcpus={} memory={} before vcpus={} memory={}",
            size.vcpus,
            size.memory,
            shape.now.vcpus,
            shape.now.memory
        );
        let told = tell(vm, size, way).await;
        // A guest that is late goes on trying.
        shape.now = size;
        told.map_err(|failure| ResizeError::Vmm {
            size,
            why: failure.to_string(),
        })
    }
}

async fn tell(vm: &Vm, size: Size, way: Way) -> Outcome<()> {
    let timeout = match way {
        Way::Grow => GROW_TIMEOUT,
        Way::Shrink => SHRINK_TIMEOUT,
    };
    let request = ResizeRequest {
        vcpus: size.vcpus,
        memory_bytes: size.memory.bytes(),
        timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
    };
    let (mut vmm, _) = control::connect().await?;
    let mut waiter = vmm.clone();
    let begun = vm.call_within(ANSWER_TIMEOUT, vmm.resize(request)).await?;
    if way == Way::Grow {
        let wait = WaitOperationRequest { id: begun.id };
        let limit = timeout + ANSWER_TIMEOUT;
        let done = vm.call_within(limit, waiter.wait_operation(wait)).await;
        done.map(drop)?;
    }
    Ok(())
}
