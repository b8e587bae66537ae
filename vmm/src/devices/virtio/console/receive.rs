//! receiveq: what is typed, on its way to the driver (virtio 1.2, 5.3.6).

use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::EventFd;

use super::service::{Broken, Service};
use crate::devices::virtio::ActiveQueue;

/// receiveq at work.
pub struct Receive {
    active: ActiveQueue,
}

impl Receive {
    /// At first nothing is known to be there.
    pub fn new(active: ActiveQueue) -> Self {
        Receive { active }
    }

    /// Signalled when there is room again.
    pub fn kick(&self) -> &EventFd {
        &self.active.kick
    }

    /// Gives the driver what there is room for. What there is none for stays in the line, which takes no more than it can hold. Kicks are
    /// wanted only while something waits for them. `true`: there is more, and room may be, too.
    ///
    /// # Errors
    /// What the guest got wrong.
    pub fn serve(&mut self, service: &Service) -> Result<bool, Broken> {
        let memory = &*service.memory;
        let queue = &mut self.active.queue;
        queue.disable_kicks(memory)?;
        let mut more = true;
        for _ in 0..queue.size() {
            if service.line.is_silent() {
                more = false;
                break;
            }
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_kicks(memory)? {
                    continue;
                }
                more = false;
                break;
            };
            if !chain.readable().is_empty() {
                return Err(Broken::Direction("receiveq has one to read"));
            }
            let input = service.line.take(chain.writable_len());
            chain.write_at(memory, 0, &input)?;
            // No more than the line holds.
            queue.complete(memory, chain.head(), input.len() as u32)?;
            let count = input.len() as u64;
            service.counters.input.fetch_add(count, Ordering::Relaxed);
        }
        if queue.needs_interrupt(memory)? {
            self.active.interrupt.trigger();
        }
        Ok(more)
    }
}
