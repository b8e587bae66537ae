//! What a pod asks of this machine: by its annotations, and by the limits of the containers that it has.

use std::collections::{BTreeMap, BTreeSet};

use crate::memory_size::MemorySize;
use crate::spec::{Annotations, HostDevice, Restricted};

use super::shape::Shape;
use super::size::{Bounds, Limits, Size, SizeError, room_within};
use super::{Pod, lock};

/// What a pod asks for.
#[derive(Debug, Default)]
pub(super) struct Demand {
    annotations: Annotations,
    containers: BTreeMap<String, Limits>,
    /// The host's devices that they are given.
    devices: BTreeMap<String, Vec<HostDevice>>,
}

impl Demand {
    fn size(&self, bounds: &Bounds) -> Result<Size, SizeError> {
        let containers = self.containers.values().copied();
        bounds.size(&self.annotations.size, containers)
    }
}

impl Pod {
    /// Notes what the pod's annotations ask for.
    ///
    /// # Errors
    /// When the pod cannot have that.
    pub fn set_annotations(&self, annotations: Annotations) -> Result<(), SizeError> {
        let mut demand = lock(&self.demand);
        let before = std::mem::replace(&mut demand.annotations, annotations);
        let fits = demand.size(&self.bounds());
        if fits.is_err() {
            demand.annotations = before;
        }
        fits.map(drop)
    }

    /// Counts container `id` among those that the VM must have room for, or counts it anew.
    ///
    /// # Errors
    /// When the pod cannot have as much; nothing has changed then.
    pub fn admit(&self, id: &str, limits: Limits) -> Result<(), SizeError> {
        let mut demand = lock(&self.demand);
        let before = demand.containers.insert(id.to_owned(), limits);
        let fits = demand.size(&self.bounds());
        if fits.is_err() {
            match before {
                Some(before) => demand.containers.insert(id.to_owned(), before),
                None => demand.containers.remove(id),
            };
        }
        fits.map(drop)
    }

    /// Container `id` is to have these devices of the host's.
    pub fn promise(&self, id: &str, devices: Vec<HostDevice>) {
        lock(&self.demand).devices.insert(id.to_owned(), devices);
    }

    /// The host's devices that the pod's containers are to have, each once.
    pub(super) fn promised(&self) -> BTreeSet<HostDevice> {
        let demand = lock(&self.demand);
        demand.devices.values().flatten().cloned().collect()
    }

    /// Container `id` needs no room any more, and no devices.
    pub fn dismiss(&self, id: &str) {
        let mut demand = lock(&self.demand);
        demand.containers.remove(id);
        demand.devices.remove(id);
    }

    /// Which annotations a pod may use here that reach further than its size.
    pub fn allowed_annotations(&self) -> &[Restricted] {
        &self.config.allow_annotations
    }

    /// How large the VM should be for what is in the pod now.
    pub(super) fn wanted(&self) -> Result<Size, SizeError> {
        lock(&self.demand).size(&self.bounds())
    }

    /// What container `id` may have; no limits for one that is not there.
    pub fn limits(&self, id: &str) -> Limits {
        let demand = lock(&self.demand);
        demand.containers.get(id).copied().unwrap_or_default()
    }

    /// What a VM that boots now is to be.
    pub(super) fn shape(&self) -> Result<Shape, SizeError> {
        let (demand, bounds) = (lock(&self.demand), self.bounds());
        let size = demand.size(&bounds)?;
        Ok(Shape::new(size, &demand.annotations.size, &bounds))
    }

    /// What the pod's annotations ask for.
    pub(super) fn annotations(&self) -> Annotations {
        lock(&self.demand).annotations.clone()
    }

    fn bounds(&self) -> Bounds {
        let group = lock(&self.cgroup);
        let limit = group.as_ref().and_then(|(group, _)| group.memory_limit());
        Bounds {
            room: limit.map(room_within),
            ..self.config.bounds(host())
        }
    }
}

/// What this machine has.
fn host() -> Size {
    let vcpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    let vcpus = vcpus.ok().flatten().and_then(|n| u32::try_from(n).ok());
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Size {
        vcpus: vcpus.unwrap_or(1),
        memory: total(&memory).unwrap_or_default(),
    }
}

/// `MemTotal:  16314684 kB`
fn total(meminfo: &str) -> Option<MemorySize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(MemorySize::of_mib(kib >> 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        assert_eq!(
            total("MemTotal:       16314684 kB\nMemFree: 1 kB\n"),
            Some(MemorySize::of_mib(15932))
        );
        assert_eq!(total("MemFree: 1 kB\n"), None);
        let host = host();
        assert!(host.vcpus >= 1 && host.memory.mib() > 64, "{host:?}");
    }
}
