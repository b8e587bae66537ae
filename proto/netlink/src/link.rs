//! Links: the interfaces of a namespace.

use std::fmt;
use std::io;
use std::str::FromStr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use crate::Index;
use crate::socket::{Change, Netlink};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: Index,
    /// Its name.
    pub name: String,
    /// Its address, where it is a station of an Ethernet.
    pub mac: Option<MacAddress>,
    /// The longest packet that it takes, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it has been set up.
    pub is_up: bool,
    /// Whether it is the loopback interface.
    pub is_loopback: bool,
    /// What it is.
    pub kind: Kind,
}

/// What a link is, as far as it matters whether packets reach another namespace or machine by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It leads somewhere: a card, or one end of something whose other end is elsewhere.
    Own,
    /// It is made of another link of this namespace, or of nothing (bridge, dummy, vlan of a link here, …).
    Derived(String),
}

/// A station's address on an Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next().filter(|part| part.len() == 2)?;
                let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
                *byte = digits
                    .then(|| u8::from_str_radix(part, 16).ok())
                    .flatten()?;
            }
            parts.next().is_none().then_some(Self(bytes))
        };
        parse().ok_or_else(|| format!("{text:?} is not a MAC address"))
    }
}

impl Netlink {
    /// All links of the namespace, by their numbers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let mut links: Vec<_> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => read(message),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Gives a link another name, which it takes only while it is not up.
    ///
    /// # Errors
    /// What the kernel says: the name is taken or is none, or the link is up.
    pub fn rename(&mut self, link: Index, name: &str) -> io::Result<()> {
        self.set_link(link, LinkAttribute::IfName(name.to_owned()))
    }

    /// Sets the longest packet that a link takes, in bytes.
    ///
    /// # Errors
    /// What the kernel says, for instance that the link cannot do that.
    pub fn set_mtu(&mut self, link: Index, mtu: u32) -> io::Result<()> {
        self.set_link(link, LinkAttribute::Mtu(mtu))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_up(&mut self, link: Index) -> io::Result<()> {
        let mut message = of(link);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), Change::Existing)
    }

    fn set_link(&mut self, link: Index, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = of(link);
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message), Change::Existing)
    }
}

fn of(link: Index) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link.get();
    message
}

fn read(message: LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let (mut name, mut mtu, mut address) = (None, 0, Vec::new());
    let (mut kind, mut on, mut elsewhere) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Mtu(bytes) => mtu = bytes,
            LinkAttribute::Address(bytes) => address = bytes,
            LinkAttribute::Link(index) => on = Index::new(index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mac = <[u8; 6]>::try_from(address).ok().map(MacAddress);
    Some(Link {
        index: Index::new(message.header.index)?,
        name: name?,
        mac: mac.filter(|_| is_ethernet),
        mtu,
        is_up: flags.contains(LinkFlags::Up),
        is_loopback: flags.contains(LinkFlags::Loopback),
        kind: kind_of(kind, on.is_some() && !elsewhere),
    })
}

fn kind_of(kind: Option<InfoKind>, is_on_another: bool) -> Kind {
    match kind {
        // Both ends of a pair may be in one namespace, and each leads to the other.
        Some(InfoKind::Veth) => Kind::Own,
        Some(
            kind @ (InfoKind::Dummy
            | InfoKind::Bridge
            | InfoKind::Ifb
            | InfoKind::Bond
            | InfoKind::Vrf),
        ) => Kind::Derived(kind.to_string()),
        Some(kind) if is_on_another => Kind::Derived(kind.to_string()),
        _ => Kind::Own,
    }
}
