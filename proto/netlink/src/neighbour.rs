//! Neighbours: which station of a link has which address.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::socket::{Change, Netlink};
use crate::{Index, MacAddress};

/// A neighbour that somebody has set for good, so that nobody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its station.
    pub mac: MacAddress,
}

impl Netlink {
    /// The neighbours of all links that were set for good.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn permanent_neighbours(&mut self) -> io::Result<Vec<(Index, Neighbour)>> {
        let message = NeighbourMessage::default();
        let answers = self.list(RouteNetlinkMessage::GetNeighbour(message))?;
        let read = |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => read(message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(read).collect())
    }

    /// Sets a neighbour of `link` for good.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_neighbour(&mut self, link: Index, neighbour: &Neighbour) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = link.get();
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unspec;
        let (family, address) = match neighbour.address {
            IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
        };
        message.header.family = family;
        message.attributes = vec![
            NeighbourAttribute::Destination(address),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
        ];
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.change(message, Change::NewOrReplaced)
    }
}

fn read(message: NeighbourMessage) -> Option<(Index, Neighbour)> {
    let header = message.header;
    if header.state != NeighbourState::Permanent || header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes).ok().map(MacAddress);
            }
            _ => {}
        }
    }
    let neighbour = Neighbour {
        address: address?,
        mac: mac?,
    };
    Some((Index::new(header.ifindex)?, neighbour))
}
