//! Addresses of links.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Index;
use crate::socket::{Change, Netlink};

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// How many of its bits are the network's.
    pub prefix_length: u8,
    /// The other end's, on a link that has two.
    pub peer: Option<IpAddr>,
    /// That of all stations of the network.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid, as the kernel numbers it (RT_SCOPE_*).
    pub scope: u8,
    /// How far it has been seen that no other station has it (RFC 4862, 5.4).
    pub detection: Detection,
    /// Who has set it.
    pub origin: Origin,
}

/// How far duplicate address detection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// It is done, or not needed.
    Done,
    /// It is under way, or is to be done.
    Due,
    /// Another station has the address.
    Failed,
}

/// Who has set an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody here, for good.
    Set,
    /// The network's router, for a time.
    Learnt,
}

impl Netlink {
    /// The addresses of all links.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&mut self) -> io::Result<Vec<(Index, Address)>> {
        let answers = self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let read = |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => read(message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(read).collect())
    }

    /// Gives a link an address, without the route to its network that the kernel would add by itself.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_address(&mut self, link: Index, address: &Address) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = match address.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.prefix_len = address.prefix_length;
        message.header.scope = address.scope.into();
        message.header.index = link.get();
        let mut flags = AddressFlags::Noprefixroute | AddressFlags::Permanent;
        if address.detection == Detection::Done {
            flags |= AddressFlags::Nodad;
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        let other = address.peer.unwrap_or(address.address);
        message.attributes = vec![
            AddressAttribute::Local(address.address),
            AddressAttribute::Address(other),
            AddressAttribute::Flags(flags),
        ];
        if let Some(broadcast) = address.broadcast {
            let broadcast = AddressAttribute::Broadcast(broadcast);
            message.attributes.push(broadcast);
        }
        self.change(
            RouteNetlinkMessage::NewAddress(message),
            Change::NewOrReplaced,
        )
    }
}

fn read(message: AddressMessage) -> Option<(Index, Address)> {
    let header = message.header;
    // The attribute holds all flags, where there is one.
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    let (mut local, mut address, mut broadcast) = (None, None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    let own = local.or(address)?;
    let detection = if flags.contains(AddressFlags::Dadfailed) {
        Detection::Failed
    } else if flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Nodad) {
        Detection::Due
    } else {
        Detection::Done
    };
    let address = Address {
        address: own,
        prefix_length: header.prefix_len,
        peer: address.filter(|address| *address != own),
        broadcast,
        scope: header.scope.into(),
        detection,
        origin: if flags.contains(AddressFlags::Permanent) {
            Origin::Set
        } else {
            Origin::Learnt
        },
    };
    Some((Index::new(header.index)?, address))
}
