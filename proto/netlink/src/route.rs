//! Routes of the main table.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Index;
use crate::socket::{Change, Netlink};

/// Who has made a route: the kernel, told by another router that there is a better way (RTPROT_REDIRECT).
pub const PROTOCOL_REDIRECT: u8 = 1;
/// Who has made a route: the kernel, told by a router of the network that it is one (RTPROT_RA).
pub const PROTOCOL_RA: u8 = 9;

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The first of them.
    pub address: IpAddr,
    /// How many bits.
    pub length: u8,
}

/// A way to a network by one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: Prefix,
    /// The station that packets are handed to; without one they go to the destination itself.
    pub gateway: Option<IpAddr>,
    /// The address that packets are sent from, unless their sender has chosen one.
    pub source: Option<IpAddr>,
    /// How far away the destination is, as the kernel numbers it (RT_SCOPE_*).
    pub scope: u8,
    /// Who has made it, as the kernel numbers them (RTPROT_*).
    pub protocol: u8,
    /// The lower, the sooner it is taken; zero for what the kernel thinks right.
    pub priority: u32,
    /// Whether the gateway is on the link although no route says so.
    pub is_onlink: bool,
    /// The longest packet that passes, in bytes, if that is less than the link's.
    pub mtu: Option<u32>,
}

/// The routes of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Those by one link.
    pub by_link: Vec<(Index, Route)>,
    /// How many there are of other kinds, such as those by several links, or those that refuse.
    pub others: usize,
}

impl Netlink {
    /// The routes of the main table, for both protocols.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn routes(&mut self) -> io::Result<Routes> {
        let mut routes = Routes::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            for answer in self.list(RouteNetlinkMessage::GetRoute(message))? {
                let RouteNetlinkMessage::NewRoute(message) = answer else {
                    continue;
                };
                if !is_lasting(&message) {
                    continue;
                }
                match read(message) {
                    Some(route) => routes.by_link.push(route),
                    None => routes.others += 1,
                }
            }
        }
        Ok(routes)
    }

    /// Adds a route by `link`, which must be up.
    ///
    /// # Errors
    /// What the kernel says, for instance that the gateway cannot be reached.
    pub fn add_route(&mut self, link: Index, route: &Route) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: match route.destination.address {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            },
            destination_prefix_length: route.destination.length,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: route.protocol.into(),
            scope: route.scope.into(),
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if route.is_onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Oif(link.get()));
        if route.destination.length > 0 {
            let destination = route.destination.address.into();
            attributes.push(RouteAttribute::Destination(destination));
        }
        attributes.extend(route.gateway.map(|gateway| {
            match (route.destination.address, gateway) {
                (IpAddr::V4(_), IpAddr::V6(gateway)) => {
                    RouteAttribute::Via(RouteVia::Inet6(gateway))
                }
                _ => RouteAttribute::Gateway(gateway.into()),
            }
        }));
        attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        if route.priority > 0 {
            attributes.push(RouteAttribute::Priority(route.priority));
        }
        if let Some(mtu) = route.mtu {
            let metrics = vec![RouteMetric::Mtu(mtu)];
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        self.change(
            RouteNetlinkMessage::NewRoute(message),
            Change::NewOrReplaced,
        )
    }
}

/// Whether it is in the main table, and no note of the kernel's about one destination.
fn is_lasting(message: &RouteMessage) -> bool {
    let table = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    let table = table.unwrap_or(message.header.table.into());
    table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && !message.header.flags.contains(RouteFlags::Cloned)
}

fn read(message: RouteMessage) -> Option<(Index, Route)> {
    let header = message.header;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    if header.kind != RouteType::Unicast || header.source_prefix_length > 0 || header.tos > 0 {
        return None;
    }
    let mut link = None;
    let mut route = Route {
        destination: Prefix {
            address: any,
            length: header.destination_prefix_length,
        },
        gateway: None,
        source: None,
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        priority: 0,
        is_onlink: header.flags.contains(RouteFlags::Onlink),
        mtu: None,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Index::new(index),
            RouteAttribute::Destination(address) => route.destination.address = ip(&address)?,
            RouteAttribute::Gateway(address) => route.gateway = Some(ip(&address)?),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some(address.into()),
            RouteAttribute::PrefSource(address) => route.source = Some(ip(&address)?),
            RouteAttribute::Priority(priority) => route.priority = priority,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(_) | RouteAttribute::Encap(_) | RouteAttribute::Via(_) => {
                return None;
            }
            _ => {}
        }
    }
    Some((link?, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
