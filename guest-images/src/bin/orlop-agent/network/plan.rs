//! An interface as the host asks for it, checked.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use orlop_netlink::{Address, Detection, MacAddress, Neighbour, Origin, Prefix, Route};
use orlop_proto::agent::v1::{self as message, Interface};

use crate::error::{Error, Result};

/// What the kernel takes as a name, without the closing zero (IFNAMSIZ).
const NAME_MAX: usize = 15;
/// The least that IPv4 needs (RFC 791).
const MTU_MIN: u32 = 68;

/// An interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The address by which it is found.
    pub mac: MacAddress,
    /// In bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Its neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Plan {
    /// Reads an interface.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when anything of it is not what it should be.
    pub fn parse(interface: &Interface) -> Result<Self> {
        let Interface {
            name,
            mac,
            mtu,
            addresses,
            routes,
            neighbours,
        } = interface;
        // As the kernel has it; a percent sign would stand for a number of its choice.
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
        if !(1..=NAME_MAX).contains(&name.len())
            || !name.chars().all(allowed)
            || matches!(name.as_str(), "." | "..")
        {
            return Err(invalid("an interface's name", name));
        }
        if *mtu < MTU_MIN {
            let what = format!("{name}: an MTU of {mtu} is too small, {MTU_MIN} is the least");
            return Err(Error::Invalid(what));
        }
        Ok(Self {
            name: name.clone(),
            mac: parse_as("a MAC address", mac)?,
            mtu: *mtu,
            addresses: addresses.iter().map(address).collect::<Result<_>>()?,
            routes: routes.iter().map(route).collect::<Result<_>>()?,
            neighbours: neighbours.iter().map(neighbour).collect::<Result<_>>()?,
        })
    }
}

fn address(given: &message::InterfaceAddress) -> Result<Address> {
    let own = ip(&given.address)?;
    let broadcast: Option<Ipv4Addr> = optional("an IPv4 address", &given.broadcast)?;
    if broadcast.is_some() && own.is_ipv6() {
        let what = format!("{own} is given a broadcast address, which IPv6 does not have");
        return Err(Error::Invalid(what));
    }
    let peer = optional("an address", &given.peer)?;
    same_family(own, peer)?;
    Ok(Address {
        address: own,
        prefix_length: length(own, given.prefix_length)?,
        peer,
        broadcast,
        scope: byte("scope", given.scope)?,
        detection: if given.detect_duplicates {
            Detection::Due
        } else {
            Detection::Done
        },
        origin: Origin::Set,
    })
}

fn route(given: &message::Route) -> Result<Route> {
    let destination = ip(&given.destination)?;
    let gateway: Option<IpAddr> = optional("an address", &given.gateway)?;
    // A gateway of IPv6 will do for IPv4 (RFC 5549), but not the other way round.
    if destination.is_ipv6() {
        same_family(destination, gateway)?;
    }
    let source = optional("an address", &given.source)?;
    same_family(destination, source)?;
    Ok(Route {
        destination: Prefix {
            address: destination,
            length: length(destination, given.prefix_length)?,
        },
        gateway,
        source,
        scope: byte("scope", given.scope)?,
        protocol: byte("protocol", given.protocol)?,
        priority: given.priority,
        is_onlink: given.onlink,
        mtu: (given.mtu > 0).then_some(given.mtu),
    })
}

fn neighbour(given: &message::Neighbour) -> Result<Neighbour> {
    Ok(Neighbour {
        address: ip(&given.address)?,
        mac: parse_as("a MAC address", &given.mac)?,
    })
}

fn ip(text: &str) -> Result<IpAddr> {
    parse_as("an address", text)
}

fn length(address: IpAddr, length: u32) -> Result<u8> {
    let most = if address.is_ipv4() { 32 } else { 128 };
    u8::try_from(length)
        .ok()
        .filter(|length| *length <= most)
        .ok_or_else(|| Error::Invalid(format!("{address} has no prefix of {length} bits")))
}

fn same_family(address: IpAddr, other: Option<IpAddr>) -> Result<()> {
    match other {
        Some(other) if other.is_ipv4() != address.is_ipv4() => Err(Error::Invalid(format!(
            "{address} and {other} are not of one protocol"
        ))),
        _ => Ok(()),
    }
}

fn byte(what: &str, number: u32) -> Result<u8> {
    u8::try_from(number).map_err(|_| Error::Invalid(format!("{what} {number} is above 255")))
}

fn optional<T: FromStr>(what: &str, text: &str) -> Result<Option<T>> {
    (!text.is_empty()).then(|| parse_as(what, text)).transpose()
}

fn parse_as<T: FromStr>(what: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| invalid(what, text))
}

fn invalid(what: &str, text: &str) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::Invalid(format!("{shown:?} is not {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> Interface {
        Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1400,
            addresses: vec![message::InterfaceAddress {
                address: "10.1.2.3".into(),
                prefix_length: 24,
                broadcast: "10.1.2.255".into(),
                ..Default::default()
            }],
            routes: vec![message::Route {
                destination: "0.0.0.0".into(),
                gateway: "fe80::1".into(),
                scope: 253,
                protocol: 3,
                mtu: 1300,
                ..Default::default()
            }],
            neighbours: vec![message::Neighbour {
                address: "fd00::1".into(),
                mac: "02:00:00:00:00:02".into(),
            }],
        }
    }

    #[test]
    fn what_is_said_arrives() {
        let plan = Plan::parse(&interface()).unwrap();
        assert_eq!(plan.mac.to_string(), "02:00:00:00:00:01");
        assert_eq!(plan.addresses[0].detection, Detection::Done);
        assert_eq!(
            plan.addresses[0].broadcast,
            Some(Ipv4Addr::new(10, 1, 2, 255))
        );
        let route = &plan.routes[0];
        assert_eq!((route.scope, route.mtu), (253, Some(1300)));
        assert!(route.gateway.unwrap().is_ipv6());
        assert!(plan.neighbours[0].address.is_ipv6());
    }

    #[test]
    fn what_is_wrong_is_refused_in_a_line() {
        let wrong: [fn(&mut Interface); 14] = [
            |it| it.name = "/".into(),
            |it| it.name = "x".repeat(16),
            |it| it.name = "eth%d".into(),
            |it| it.mac = "02:00".into(),
            |it| it.mtu = 67,
            |it| it.addresses[0].address = "10.1.2".into(),
            |it| it.addresses[0].prefix_length = 33,
            |it| it.addresses[0].peer = "fd00::1".into(),
            |it| it.addresses[0].address = "fd00::1".into(),
            |it| it.addresses[0].scope = 256,
            |it| it.routes[0].destination = String::new(),
            |it| it.routes[0].source = "fd00::1".into(),
            |it| it.routes[0].protocol = 1000,
            |it| it.neighbours[0].mac = "\n".repeat(1000),
        ];
        for (n, change) in wrong.into_iter().enumerate() {
            let mut interface = interface();
            change(&mut interface);
            let error = Plan::parse(&interface).err();
            let error = error.unwrap_or_else(|| panic!("{n} passes"));
            assert!(matches!(error, Error::Invalid(_)), "{n}: {error}");
            let text = error.to_string();
            assert!(text.len() < 200 && !text.contains('\n'), "{text}");
        }
    }
}
