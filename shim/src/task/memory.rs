//! Makes known that a container's processes were killed for want of memory.
//!
//! containerd's CRI plugin gives a container that was `OOMKilled` this reason when it has heard so before it looks at the exit. So the
//! event comes first: what has happened until the exit is asked for once more when the exit is known.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use orlop_proto::agent::v1::WaitOomRequest;

use crate::codes::Outcome;
use crate::events::{Event, Publisher};
use crate::sandbox::Vm;

/// A guest that reports one kill after another gets an event for all of them in this time.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the guest may take to answer once the container has exited.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Watches a container's memory.
pub(super) struct MemoryWatch<'c> {
    vm: &'c Vm,
    container: &'c str,
    events: &'c Publisher,
    seen: u64,
}

impl<'c> MemoryWatch<'c> {
    /// Watches `container`; what happens goes to `events`.
    pub fn new(vm: &'c Vm, container: &'c str, events: &'c Publisher) -> Self {
        Self {
            vm,
            container,
            events,
            seen: 0,
        }
    }

    /// Reports what happens, for as long as it is polled.
    pub async fn run(&mut self) -> Infallible {
        loop {
            let mut agent = self.vm.agent();
            match self.vm.call(agent.wait_oom(self.request())).await {
                Ok(response) if response.kills > self.seen => self.report(response.kills),
                // It has exited, and whoever waits for that will be here soon.
                Ok(_) => pending().await,
                Err(failure) => {
                    log::warn!("the memory of {} is not watched: {failure}", self.container);
                    pending().await
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reports what has happened until the container's exit.
    pub async fn finish(mut self) {
        let mut agent = self.vm.agent();
        let call = agent.wait_oom(self.request());
        let answer: Outcome<_> = self.vm.call_within(LAST_ANSWER, call).await;
        if let Ok(response) = answer
            && response.kills > self.seen
        {
            self.report(response.kills);
        }
    }

    fn request(&self) -> WaitOomRequest {
        WaitOomRequest {
            container: self.container.to_owned(),
            seen: self.seen,
        }
    }

    fn report(&mut self, kills: u64) {
        self.seen = kills;
        log::info!("oom container={} kills={kills}", self.container);
        self.events.publish(&Event::Oom(TaskOOM {
            container_id: self.container.to_owned(),
            ..TaskOOM::default()
        }));
    }
}
