//! What a claim has to give: groups, each by a name that stays the same when the host boots again.

use std::collections::BTreeMap;

use orlop_vmm::config::HostAddress;
use orlop_vmm::host_pci::claims::Claim;
use orlop_vmm::host_pci::{System, VFIO_PCI, identity};

use crate::api::device_plugin as api;

/// A group that can be given to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The address of the first device of it that is claimed: groups are numbered anew at each boot.
    pub id: String,
    /// The number of its node `/dev/vfio/N`; `None` while it is not there.
    pub group: Option<u32>,
    /// The devices of it that are claimed.
    pub addresses: Vec<HostAddress>,
    /// Which memory it is near to, where the host says so.
    pub numa: Option<i64>,
    /// Whether it can be given now: all of it is VFIO's, and what was claimed.
    pub is_healthy: bool,
}

impl Unit {
    /// As the kubelet is told.
    pub fn device(&self) -> api::Device {
        let node = |id| api::TopologyInfo {
            nodes: vec![api::NumaNode { id }],
        };
        api::Device {
            id: self.id.clone(),
            health: if self.is_healthy {
                "Healthy".into()
            } else {
                "Unhealthy".into()
            },
            topology: self.numa.map(node),
        }
    }
}

/// The groups of a claim as they are now, in the order of their names.
pub fn units(system: &System, claim: &Claim) -> Vec<Unit> {
    let mut units: BTreeMap<(Option<u32>, Option<HostAddress>), Unit> = BTreeMap::new();
    for claimed in &claim.devices {
        let device = system.host.device(claimed.address);
        let group = device.as_ref().and_then(|device| device.group());
        // Those that are in no group are each alone.
        let key = (group, group.is_none().then_some(claimed.address));
        let is_healthy = device.as_ref().is_some_and(|device| {
            let together = system.together(device).unwrap_or_default();
            let is_vfio = |member: &orlop_vmm::host_pci::Device| {
                member.is_bridge() || member.driver().as_deref() == Some(VFIO_PCI)
            };
            group.is_some()
                && identity(device) == claimed.identity
                && !together.is_empty()
                && together.iter().all(is_vfio)
        });
        let numa = device
            .and_then(|device| device.attribute("numa_node")?.parse().ok())
            .filter(|node: &i64| *node >= 0);
        let unit = units.entry(key).or_insert_with(|| Unit {
            id: claimed.address.to_string(),
            group,
            addresses: Vec::new(),
            numa,
            is_healthy: true,
        });
        unit.addresses.push(claimed.address);
        unit.is_healthy &= is_healthy;
    }
    let mut units: Vec<_> = units.into_values().collect();
    units.sort_by(|one, other| one.id.cmp(&other.id));
    units
}

/// Of those that are available, as many as are wanted, `must` among them: near to the same memory as far as that goes, nearest to what must be
/// among them first.
pub fn preferred(
    units: &[Unit],
    available: &[String],
    must: &[String],
    size: usize,
) -> Vec<String> {
    let numa = |id: &String| {
        let unit = units.iter().find(|unit| unit.id == *id);
        unit.and_then(|unit| unit.numa)
    };
    let mut chosen: Vec<String> = must.iter().take(size).cloned().collect();
    let mut rest: Vec<_> = available
        .iter()
        .filter(|id| !chosen.contains(id))
        .cloned()
        .collect();
    rest.sort();
    let mut count: BTreeMap<Option<i64>, usize> = BTreeMap::new();
    for id in &rest {
        *count.entry(numa(id)).or_default() += 1;
    }
    let near = chosen.first().map(numa);
    // The memory that most are near to, so that fewest memories are needed.
    rest.sort_by_key(|id| {
        let at = numa(id);
        let others = count.get(&at).copied().unwrap_or(0);
        (near != Some(at), std::cmp::Reverse(others), at, id.clone())
    });
    let missing = size.saturating_sub(chosen.len());
    chosen.extend(rest.into_iter().take(missing));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(id: &str, numa: Option<i64>) -> Unit {
        Unit {
            id: id.into(),
            group: Some(1),
            addresses: Vec::new(),
            numa,
            is_healthy: true,
        }
    }

    #[test]
    fn those_near_to_the_same_memory_are_preferred() {
        let units = [
            unit("a", Some(0)),
            unit("b", Some(1)),
            unit("c", Some(1)),
            unit("d", None),
        ];
        let strings = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = strings(&["a", "b", "c", "d"]);
        let choose = |must: &[&str], size| preferred(&units, &all, &strings(must), size);
        assert_eq!(choose(&[], 1), ["b"]);
        assert_eq!(choose(&[], 2), ["b", "c"]);
        assert_eq!(choose(&["a"], 1), ["a"]);
        assert_eq!(choose(&["c"], 2), ["c", "b"]);
        assert_eq!(choose(&[], 9).len(), 4);
        assert_eq!(choose(&["a", "b"], 1), ["a"]);
    }
}
