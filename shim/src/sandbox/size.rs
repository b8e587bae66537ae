//! How large a pod's VM is to be: vCPUs and memory, from what the pod, its containers and the configuration say.
//!
//! What a pod asks for by its annotations is what it gets. Otherwise the VM has what the limits of the pod's containers add up to, as
//! containerd tells before there is a container, or as the containers' own specs tell as they come; whichever is more. A container without a
//! limit counts as the configuration's default, all such containers together once. Memory goes up by what the guest's kernel and agent need.
//!
//! A VM has no more than the pod's control group can hold beside the processes that run it: the kubelet makes that group's limit of the containers'
//! limits and the RuntimeClass's overhead, and where a guest could use more, the host would kill the VM. So the guest's own kernel is the one that runs out,
//! and ends a process of the container that takes too much.
//!
//! A limit is no wish: it may be larger than the machine, and means all of it then. What is beyond the configuration's bounds is refused.

use oci_spec::runtime::LinuxResources;

use crate::memory_size::MemorySize;

/// A CPU, in the unit of limits.
const CPU: u64 = 1000;
/// What a container has that asks for one CPU, in the unit of requests (cgroup v1's cpu.shares).
const SHARES: u64 = 1024;
/// How many bytes of RAM the guest's kernel has one for to keep account of them: `struct page`, 64 bytes for each 4096.
const ACCOUNT: u64 = 64;
/// The least memory that a guest boots in.
pub const LEAST_MEMORY: MemorySize = MemorySize::of_mib(48);
/// The most that the VMM gives, in MiB.
pub const MOST_MEMORY: MemorySize = MemorySize::of_mib(1 << 20);
/// The most vCPUs that the VMM gives.
pub const MOST_VCPUS: u32 = 254;

/// The size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// All of its memory.
    pub memory: MemorySize,
}

/// What a container, or all of a pod's, may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time, in thousandths of a CPU.
    pub cpu: Option<u64>,
    /// The weight of what it asks for, 1024 for a CPU.
    pub shares: u64,
    /// Memory.
    pub memory: Option<MemorySize>,
}

/// What a pod's annotations say of its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `orlop.dev/vcpus`.
    pub vcpus: Option<u32>,
    /// `orlop.dev/memory`.
    pub memory: Option<MemorySize>,
    /// What the pod's containers may have together, as containerd says.
    pub pod: Limits,
}

/// What the configuration and the machine say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What a pod has whose containers have no limits.
    pub default: Size,
    /// What a guest needs beside its containers.
    pub guest: MemorySize,
    /// The most that a pod may have.
    pub most: Size,
    /// What the machine has.
    pub host: Size,
    /// What the pod's control group holds of the VM's memory, where it has a limit.
    pub room: Option<MemorySize>,
}

/// The processes that run a guest, with what the host's kernel has for them: 14 MiB were measured (docs/performance.md).
const PROCESSES: MemorySize = MemorySize::of_mib(16);
/// How many bytes of RAM the host's kernel has one for in the tables that it is reached by: 8 bytes for each 4096.
const TABLES: u64 = 512;

/// What a control group with this limit, in bytes, holds of a VM's memory.
pub fn room_within(limit: u64) -> MemorySize {
    let limit = limit >> 20;
    MemorySize::of_mib(limit.saturating_sub(PROCESSES.mib() + limit / TABLES))
}

/// Why a pod cannot have the size that it asks for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    /// More vCPUs than allowed, or none.
    #[error(
        "{asked} is {vcpus}: a pod may have 1 to {most} vCPUs here (`max_vcpus` in the configuration of Orlop)"
    )]
    Vcpus {
        /// What asks for it.
        asked: String,
        /// How many.
        vcpus: u64,
        /// How many there may be.
        most: u32,
    },
    /// More memory than allowed, or less than a guest needs.
    #[error("{asked} is {memory}: a pod's VM may have {LEAST_MEMORY} to {most} of memory here (`max_memory` in the configuration of Orlop){}", extra(*.guest))]
    Memory {
        /// What asks for it.
        asked: String,
        /// How much.
        memory: MemorySize,
        /// How much of that, beside what is asked for, the guest needs.
        guest: MemorySize,
        /// How much it may be.
        most: MemorySize,
    },
}

fn extra(guest: MemorySize) -> String {
    if guest == MemorySize::default() {
        return String::new();
    }
    format!(", {guest} of it for the guest's kernel")
}

impl Limits {
    /// Those that an OCI spec says.
    pub fn of(resources: Option<&LinuxResources>) -> Self {
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        let quota = cpu.and_then(oci_spec::runtime::LinuxCpu::quota);
        let period = cpu.and_then(oci_spec::runtime::LinuxCpu::period);
        Self {
            cpu: quota.and_then(|quota| Self::cpu_of(quota, period.unwrap_or(100_000))),
            shares: cpu
                .and_then(oci_spec::runtime::LinuxCpu::shares)
                .unwrap_or(0),
            memory: memory
                .and_then(oci_spec::runtime::LinuxMemory::limit)
                .and_then(Self::memory_of),
        }
    }

    /// These, where `resources` name no others.
    #[must_use]
    pub fn changed(&self, resources: &LinuxResources) -> Self {
        let new = Self::of(Some(resources));
        let cpu = resources.cpu().as_ref();
        let memory = resources.memory().as_ref();
        let names_cpu = cpu.is_some_and(|cpu| cpu.quota().is_some());
        let names_shares = cpu.is_some_and(|cpu| cpu.shares().is_some());
        let names_memory = memory.is_some_and(|memory| memory.limit().is_some());
        Self {
            cpu: if names_cpu { new.cpu } else { self.cpu },
            shares: if names_shares {
                new.shares
            } else {
                self.shares
            },
            memory: if names_memory {
                new.memory
            } else {
                self.memory
            },
        }
    }

    /// A quota of CPU time in each period, in microseconds. None for what means no limit.
    pub fn cpu_of(quota: i64, period: u64) -> Option<u64> {
        let quota = u64::try_from(quota).ok().filter(|quota| *quota > 0)?;
        let wide = u128::from(quota) * u128::from(CPU);
        let cpu = wide.div_ceil(u128::from(period.max(1)));
        Some(u64::try_from(cpu).unwrap_or(u64::MAX))
    }

    /// A limit in bytes. None for what means no limit.
    pub fn memory_of(limit: i64) -> Option<MemorySize> {
        let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0)?;
        Some(MemorySize::of_bytes(limit))
    }
}

/// What containers add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    cpu: u64,
    memory: MemorySize,
    /// Whether some have no limit, and what these ask for.
    free_cpu: Option<u64>,
    free_memory: bool,
}

impl Sum {
    fn of(containers: impl IntoIterator<Item = Limits>) -> Self {
        let mut sum = Self::default();
        for limits in containers {
            match limits.cpu {
                Some(cpu) => sum.cpu = sum.cpu.saturating_add(cpu),
                None => {
                    let shares = sum.free_cpu.unwrap_or(0);
                    sum.free_cpu = Some(shares.saturating_add(limits.shares));
                }
            }
            match limits.memory {
                Some(memory) => sum.memory = sum.memory.plus(memory),
                None => sum.free_memory = true,
            }
        }
        sum
    }
}

impl Bounds {
    /// The size of a VM for a pod that asks for `asked` and has these containers.
    ///
    /// # Errors
    /// When that is beyond the bounds.
    pub fn size(
        &self,
        asked: &Asked,
        containers: impl IntoIterator<Item = Limits>,
    ) -> Result<Size, SizeError> {
        let sum = Sum::of(containers);
        Ok(Size {
            vcpus: match asked.vcpus {
                Some(vcpus) => self.vcpus("annotation orlop.dev/vcpus", vcpus.into())?,
                None => self.vcpus_for(&asked.pod, &sum)?,
            },
            memory: match asked.memory {
                Some(memory) => {
                    let guest = MemorySize::default();
                    self.memory("annotation orlop.dev/memory", memory, guest)?
                }
                None => self.memory_for(&asked.pod, &sum)?,
            },
        })
    }

    fn vcpus_for(&self, pod: &Limits, sum: &Sum) -> Result<u32, SizeError> {
        let free = |shares: u64| {
            let asked = shares.saturating_mul(CPU) / SHARES;
            asked.max(u64::from(self.default.vcpus) * CPU)
        };
        let of_pod = pod.cpu.unwrap_or_else(|| free(pod.shares));
        let of_containers = sum.cpu.saturating_add(sum.free_cpu.map_or(0, free));
        // Where all have limits, these say more than the default does.
        let cpu = match (pod.cpu, sum.free_cpu) {
            (None, None) if sum.cpu > 0 => of_containers,
            _ => of_pod.max(of_containers),
        };
        let vcpus = cpu
            .div_ceil(CPU)
            .clamp(1, u64::from(self.host.vcpus.max(1)));
        self.vcpus("the CPU limit of the pod's containers", vcpus)
    }

    fn memory_for(&self, pod: &Limits, sum: &Sum) -> Result<MemorySize, SizeError> {
        let account = |memory: MemorySize| MemorySize::of_mib(memory.mib() / ACCOUNT);
        let limited = |memory: MemorySize| memory.plus(self.guest).plus(account(memory));
        // The default has what the guest needs in it.
        let free = || {
            sum.memory
                .plus(account(sum.memory))
                .plus(self.default.memory)
        };
        let memory = match (pod.memory, sum.free_memory) {
            (Some(memory), true) => limited(memory).max(free()),
            (Some(memory), false) => limited(memory.max(sum.memory)),
            (None, false) if sum.memory > MemorySize::default() => limited(sum.memory),
            (None, _) => free(),
        };
        let containers = pod.memory.unwrap_or_default().max(sum.memory);
        let guest = MemorySize::of_mib(memory.mib().saturating_sub(containers.mib()));
        let most = self
            .room
            .map_or(self.host.memory, |room| room.min(self.host.memory));
        let memory = memory.clamp(LEAST_MEMORY, most.max(LEAST_MEMORY));
        self.memory("the memory limit of the pod's containers", memory, guest)
    }

    fn vcpus(&self, asked: &str, vcpus: u64) -> Result<u32, SizeError> {
        let most = self.most.vcpus;
        let few = u32::try_from(vcpus).ok();
        few.filter(|vcpus| (1..=most).contains(vcpus))
            .ok_or_else(|| SizeError::Vcpus {
                asked: asked.to_owned(),
                vcpus,
                most,
            })
    }

    fn memory(
        &self,
        asked: &str,
        memory: MemorySize,
        guest: MemorySize,
    ) -> Result<MemorySize, SizeError> {
        let most = self.most.memory;
        if (LEAST_MEMORY..=most).contains(&memory) {
            return Ok(memory);
        }
        Err(SizeError::Memory {
            asked: asked.to_owned(),
            memory,
            guest,
            most,
        })
    }
}

#[cfg(test)]
mod tests;
