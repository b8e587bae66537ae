//! What there is in a pod's namespace, in the words in which the guest is told.

use orlop_netlink::{
    Address, Detection, Index, Kind, Link, MacAddress, Neighbour, Netlink, Origin, PROTOCOL_RA,
    PROTOCOL_REDIRECT, Route,
};
use orlop_proto::agent::v1::{self as agent, Interface, InterfaceAddress};

use super::{Namespace, NetworkError, open};

/// An interface that leads out of the namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its number there.
    pub index: Index,
    /// Its address.
    pub mac: MacAddress,
    /// What the guest is to have of it.
    pub interface: Interface,
}

/// Finds the interfaces that are up and lead out of `namespace`, with all that belongs to them.
///
/// What the network's routers have told is left out: they will tell the guest.
///
/// # Errors
/// When the kernel does not say.
pub fn look(namespace: &Namespace) -> Result<Vec<Found>, NetworkError> {
    namespace.run(|| {
        let mut netlink = open()?;
        let mut found: Vec<_> = list(&mut netlink, "interfaces", Netlink::links)?
            .into_iter()
            .filter_map(leads_out)
            .collect();
        let addresses = list(&mut netlink, "addresses", Netlink::addresses)?;
        let routes = list(&mut netlink, "routes", Netlink::routes)?;
        let neighbours = list(&mut netlink, "neighbours", Netlink::permanent_neighbours)?;
        if routes.others > 0 {
            log::warn!(
                "{} routes of the pod's network are of kinds that the guest does not get (such as those by several interfaces)",
                routes.others
            );
        }
        for Found {
            index, interface, ..
        } in &mut found
        {
            interface.addresses = of(*index, &addresses).filter_map(address).collect();
            interface.routes = of(*index, &routes.by_link).filter_map(route).collect();
            interface.neighbours = of(*index, &neighbours).map(neighbour).collect();
        }
        Ok(found)
    })
}

fn list<T>(
    netlink: &mut Netlink,
    what: &'static str,
    read: impl FnOnce(&mut Netlink) -> std::io::Result<T>,
) -> Result<T, NetworkError> {
    read(netlink).map_err(|source| NetworkError::Read { what, source })
}

fn of<T>(link: Index, all: &[(Index, T)]) -> impl Iterator<Item = &T> {
    all.iter()
        .filter(move |(index, _)| *index == link)
        .map(|(_, thing)| thing)
}

fn leads_out(link: Link) -> Option<Found> {
    if link.is_loopback || !link.is_up {
        return None;
    }
    let name = link.name;
    if let Kind::Derived(kind) = &link.kind {
        log::warn!(
            "{name} in the pod's network is a {kind}, which leads nowhere: the guest does not get it"
        );
        return None;
    }
    let Some(mac) = link.mac else {
        log::warn!("{name} in the pod's network is no Ethernet: the guest does not get it");
        return None;
    };
    Some(Found {
        index: link.index,
        mac,
        interface: Interface {
            name,
            mac: mac.to_string(),
            mtu: link.mtu,
            ..Interface::default()
        },
    })
}

fn address(address: &Address) -> Option<InterfaceAddress> {
    if address.origin == Origin::Learnt {
        return None;
    }
    if address.detection == Detection::Failed {
        log::warn!(
            "another station has the address {} of the pod's: the guest does not get it",
            address.address
        );
        return None;
    }
    Some(InterfaceAddress {
        address: address.address.to_string(),
        prefix_length: address.prefix_length.into(),
        peer: text(address.peer),
        broadcast: text(address.broadcast),
        scope: address.scope.into(),
        detect_duplicates: address.detection == Detection::Due,
    })
}

fn route(route: &Route) -> Option<agent::Route> {
    if [PROTOCOL_RA, PROTOCOL_REDIRECT].contains(&route.protocol) {
        return None;
    }
    Some(agent::Route {
        destination: route.destination.address.to_string(),
        prefix_length: route.destination.length.into(),
        gateway: text(route.gateway),
        source: text(route.source),
        scope: route.scope.into(),
        protocol: route.protocol.into(),
        priority: route.priority,
        onlink: route.is_onlink,
        mtu: route.mtu.unwrap_or(0),
    })
}

fn neighbour(neighbour: &Neighbour) -> agent::Neighbour {
    agent::Neighbour {
        address: neighbour.address.to_string(),
        mac: neighbour.mac.to_string(),
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
