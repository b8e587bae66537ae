//! A machine's vCPUs: those that it boots with, and those that come and go.
//!
//! KVM makes a vCPU once and for all. One that the guest has let go of is parked at the [`Gate`], and goes on from there, as if it were new,
//! when it is wanted again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use tokio::sync::oneshot;

use super::Error;
use crate::arch::x86_64::cpuid;
use crate::arch::x86_64::regs::{self, Entry};
use crate::config::VcpuCount;
use crate::control::{Done, EndOfLife, Refusal};
use crate::devices::cpu_hotplug::CpuHotplug;
use crate::vcpu::{Buses, Gate, Vcpu};

/// The vCPUs of one machine.
pub(super) struct Processors {
    /// In the order of their numbers.
    vcpus: Vec<Vcpu>,
    gate: Arc<Gate>,
    changes: Option<Changes>,
}

/// What a machine has whose number of vCPUs may change.
pub(super) struct Changes {
    /// The guest's side.
    registers: Arc<CpuHotplug>,
    /// Makes more.
    maker: Maker,
    /// Those that the guest was asked to let go of.
    leaving: BTreeSet<u8>,
    /// Who waits for these to have gone.
    waiting: Vec<oneshot::Sender<()>>,
}

/// Makes vCPUs, whose threads wait at the gate.
pub(super) struct Maker {
    pub vm: Arc<VmFd>,
    pub supported: CpuId,
    /// How many there may be.
    pub most: VcpuCount,
    pub entry: Entry,
    pub buses: Arc<Buses>,
    pub gate: Arc<Gate>,
    pub end: EndOfLife,
}

impl Maker {
    /// Makes the first `count`, for a guest that has not begun.
    ///
    /// # Errors
    /// What KVM or the system says.
    pub fn boot(&self, count: VcpuCount) -> Result<Vec<Vcpu>, Error> {
        self.make(0..count.get(), |_| Ok(()))
    }

    /// Makes more of them, while others run.
    fn add(&self, ids: Range<u8>) -> Result<Vec<Vcpu>, Error> {
        self.make(ids, introduce)
    }

    /// All are created before the first is set up.
    fn make(
        &self,
        ids: Range<u8>,
        prepare: impl Fn(&VcpuFd) -> Result<(), Error>,
    ) -> Result<Vec<Vcpu>, Error> {
        let mut fds = Vec::with_capacity(ids.len());
        for id in ids {
            let fd = self.vm.create_vcpu(id.into()).map_err(|e| {
                Error::KvmRefused("create a vCPU; give the VM fewer with --cpus", e)
            })?;
            let leaves =
                cpuid::of_vcpu(&self.supported, id, self.most.get()).map_err(Error::Cpuid)?;
            fd.set_cpuid2(&leaves)
                .map_err(|e| Error::KvmRefused("set a vCPU's CPUID", e))?;
            regs::set_up(&fd, self.entry)?;
            prepare(&fd)?;
            if id == 0 {
                self.buses.coalesce(&self.vm, &fd);
            }
            fds.push((id, fd));
        }
        let spawn = |(id, fd)| {
            let (buses, gate) = (self.buses.clone(), self.gate.clone());
            Vcpu::spawn(id, fd, buses, gate, self.end.clone())
                .map_err(|e| Error::System("start a vCPU's thread", e))
        };
        fds.into_iter().map(spawn).collect()
    }
}

/// Has KVM look where the local APIC of a vCPU is. It does not do so when a vCPU is made, and would lose the INIT that is sent to it, unless
/// some other APIC changes in between.
fn introduce(fd: &VcpuFd) -> Result<(), Error> {
    let refused = |e| Error::KvmRefused("set a vCPU's local APIC", e);
    let state = fd.get_lapic().map_err(refused)?;
    fd.set_lapic(&state).map_err(refused)
}

impl Processors {
    /// A machine's vCPUs; without `changes` they are what they are.
    pub fn new(vcpus: Vec<Vcpu>, gate: Arc<Gate>, changes: Option<Changes>) -> Self {
        Processors {
            vcpus,
            gate,
            changes,
        }
    }

    /// How many the guest has.
    pub fn count(&self) -> usize {
        match &self.changes {
            Some(changes) => changes.registers.count(),
            None => self.vcpus.len(),
        }
    }

    /// All that were made.
    pub fn made(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// The guest is to have `count` of them. Those that come are there when this returns; those that are to go take their time.
    pub fn resize(&mut self, count: VcpuCount) -> Result<Done, Refusal> {
        let Some(changes) = &mut self.changes else {
            return Err(Refusal::FixedVcpus);
        };
        let (count, most) = (count.get(), changes.maker.most.get());
        if count > most {
            return Err(Refusal::TooManyVcpus { most });
        }
        let made = u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX);
        if count > made {
            let more = changes.maker.add(made..count);
            let more = more.map_err(|error| Refusal::Host(crate::error::line(&error)))?;
            self.vcpus.extend(more);
        }
        // Who waited for another number waits in vain.
        changes.waiting.clear();
        for id in 0..count {
            changes.leaving.remove(&id);
            if !changes.registers.has(id) {
                self.gate.unpark(id);
            }
            changes.registers.come(id);
        }
        for id in (count..most).filter(|id| changes.registers.has(*id)) {
            changes.leaving.insert(id);
            changes.registers.ask_for(id);
        }
        let (tell, done) = oneshot::channel();
        changes.waiting.push(tell);
        changes.tell();
        Ok(done)
    }

    /// The guest has let go of vCPU `id`, whether it was asked to or not.
    pub fn ejected(&mut self, id: u8) {
        let Some(changes) = &mut self.changes else {
            return;
        };
        // It may have come again since.
        if changes.registers.has(id) {
            return;
        }
        self.gate.park(id);
        changes.leaving.remove(&id);
        changes.tell();
    }

    /// Waits for the threads, which end once the gate is closed for good.
    pub fn join(self) {
        for vcpu in self.vcpus {
            vcpu.join();
        }
    }
}

impl Changes {
    pub fn new(registers: Arc<CpuHotplug>, maker: Maker) -> Self {
        Changes {
            registers,
            maker,
            leaving: BTreeSet::new(),
            waiting: Vec::new(),
        }
    }

    /// Tells those who wait, if nothing is left to be waited for.
    fn tell(&mut self) {
        if self.leaving.is_empty() {
            for tell in self.waiting.drain(..) {
                // One that has gone does not hear it.
                let _ = tell.send(());
            }
        }
    }
}
