//! Giving a running VM another size.

use super::{Machine, Vm};
use crate::config::MemorySize;
use crate::control::news::Happening;
use crate::control::{Done, Refusal, Resize};
use crate::devices::virtio::mem::{self, NotSo};

impl Vm {
    /// Has the guest have other numbers of vCPUs and bytes, now and when it boots again. Nothing changes unless both can be had.
    pub(super) fn resize(
        &mut self,
        machine: &mut Machine,
        Resize { vcpus, memory }: Resize,
    ) -> Result<Vec<Done>, Refusal> {
        let more = memory.map(|bytes| self.beside_boot(bytes)).transpose()?;
        let mut waits = Vec::new();
        if let Some(count) = vcpus {
            waits.push(machine.processors.resize(count)?);
            self.config.vcpus.boot = count;
        }
        if let Some((target, more)) = more {
            waits.push(target.set(more).map_err(|why| self.refusal(why))?);
        }
        self.news.tell(Happening::Resized(Resize { vcpus, memory }));
        Ok(waits)
    }

    /// How much of `bytes` is to come beside what the VM boots with, where that can be had.
    fn beside_boot(&self, bytes: u64) -> Result<(mem::Target, u64), Refusal> {
        let target = self.front.as_ref().and_then(|front| front.memory.clone());
        let target = target.ok_or(Refusal::FixedMemory)?;
        let boot = self.config.memory.size.bytes();
        let more = bytes.checked_sub(boot).ok_or_else(|| self.limits())?;
        target.check(more).map_err(|why| self.refusal(why))?;
        Ok((target, more))
    }

    fn refusal(&self, why: NotSo) -> Refusal {
        match why {
            NotSo::TooMuch { .. } => self.limits(),
            NotSo::PartOfBlock { block } => Refusal::MemoryBlock {
                block_mib: block >> 20,
            },
        }
    }

    fn limits(&self) -> Refusal {
        let memory = self.config.memory;
        Refusal::MemorySize {
            least_mib: memory.size.bytes() >> 20,
            most_mib: memory.most.map_or(0, MemorySize::bytes) >> 20,
        }
    }
}
