//! A pod's network: what a CNI has made in the pod's network namespace, joined to the cards of the pod's VM.
//!
//! ```text
//!   node                 the pod's namespace                               the VMM            the guest
//!   bridge, routes ───── eth0 ── all that comes in, by tc ──► pod-tap0 ─── descriptors ────── eth0
//!                             ◄── all that comes in, by tc ──
//! ```
//!
//! The interface of the CNI stays as it is, with its addresses, and nothing reaches the namespace's own stack any more: the guest has
//! the interface's MAC address, and what else belongs to it ([`look`]). Each packet goes from one to the other as it is, so that whatever
//! the node does to the packets of that interface it does to the guest's ([`join`]). The VMM gets descriptors and never enters the
//! namespace.
//!
//! What is dialled on the namespace's loopback reaches the guest's by another way ([`localhost`]).
//!
//! A tap is gone with the last of its descriptors, and all else with the namespace. [`Joined`] is what has to be known to
//! take it away before that.

mod interfaces;
mod localhost;
mod namespace;
mod tap;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use orlop_netlink::{Index, MacAddress, Netlink};
use orlop_proto::agent::v1::Interface;
use serde::{Deserialize, Serialize};

pub use interfaces::{Found, look};
pub use localhost::Localhost;
pub use namespace::Namespace;

/// The most queues that a card may have, as `orlop run --net` takes them.
const QUEUES_MAX: u32 = 16;

/// Why a pod cannot have its network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The pod is to have the network of the machine.
    #[error("{HOST_NETWORK}")]
    HostNetwork,
    /// The namespace cannot be used.
    #[error("cannot enter the pod's network namespace {}: {source}", path.display())]
    Namespace {
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The namespace cannot be looked at.
    #[error("cannot read the {what} of the pod's network: {source}")]
    Read {
        /// Of which kind of thing.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A tap cannot be made.
    #[error(
        "cannot make a tap for {interface} in the pod's network: {source}; is the module tun loaded?"
    )]
    Tap {
        /// The interface.
        interface: String,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else decides what becomes of the interface's packets.
    #[error(
        "{0} in the pod's network has an ingress queue already, where Orlop must have its own: is another program redirecting its packets?"
    )]
    Taken(String),
    /// An interface and its tap cannot be joined.
    #[error(
        "cannot join {interface} in the pod's network to its tap: {source}; are the modules sch_ingress, cls_matchall and act_mirred there?"
    )]
    Join {
        /// The interface.
        interface: String,
        /// What the system says.
        source: io::Error,
    },
    /// The work was not done to its end.
    #[error("the thread in the pod's network namespace ended")]
    Interrupted,
}

/// What is said to whoever asks for the machine's network.
pub const HOST_NETWORK: &str = "the pod asks for the host's network (hostNetwork), which a virtual machine cannot share: leave hostNetwork out, \
    or run this pod with another runtime class";

/// What was made in a pod's namespace, for whoever takes it away.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Joined {
    /// The namespace's path.
    pub namespace: PathBuf,
    /// The interfaces that were joined to taps, by name.
    pub interfaces: Vec<String>,
}

/// A network card for the VM.
#[derive(Debug)]
pub struct Card {
    /// The tap's descriptors, one for each queue.
    pub queues: Vec<OwnedFd>,
    /// Its address.
    pub mac: MacAddress,
    /// What the guest is to make of it.
    pub interface: Interface,
}

/// Joins each of `found` to a tap with as many queues as the guest has processors.
///
/// # Errors
/// When one cannot be; then nothing is left of what was made.
pub fn join(
    namespace: &Namespace,
    found: Vec<Found>,
    vcpus: u32,
) -> Result<Vec<Card>, NetworkError> {
    let queues = vcpus.clamp(1, QUEUES_MAX);
    namespace.run(move || {
        let mut netlink = open()?;
        let mut cards = Vec::with_capacity(found.len());
        let mut done = Vec::with_capacity(found.len());
        for (number, found) in found.into_iter().enumerate() {
            let index = found.index;
            match join_one(&mut netlink, number, found, queues) {
                Ok(card) => {
                    cards.push(card);
                    done.push(index);
                }
                Err(error) => {
                    for index in done {
                        // With its filter goes all that keeps packets from their way; it was made here.
                        let _ = netlink.remove_ingress(index);
                    }
                    return Err(error);
                }
            }
        }
        Ok(cards)
    })
}

fn join_one(
    netlink: &mut Netlink,
    number: usize,
    found: Found,
    queues: u32,
) -> Result<Card, NetworkError> {
    let name = &found.interface.name;
    let failed = |source| NetworkError::Tap {
        interface: name.clone(),
        source,
    };
    let tap = tap::make(&format!("pod-tap{number}"), queues).map_err(failed)?;
    let links = netlink.links().map_err(failed)?;
    let link = links.iter().find(|link| link.name == tap.name);
    let gone = || io::Error::other("it is gone again");
    let to = link.ok_or_else(gone).map_err(failed)?.index;
    tap::keep_quiet(&tap.name);
    netlink.set_mtu(to, found.interface.mtu).map_err(failed)?;
    netlink.set_up(to).map_err(failed)?;
    connect(netlink, found.index, to, name)?;
    Ok(Card {
        queues: tap.queues,
        mac: found.mac,
        interface: found.interface,
    })
}

/// Has each of the two links send what comes in by the other.
fn connect(
    netlink: &mut Netlink,
    outer: Index,
    tap: Index,
    name: &str,
) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Join {
        interface: name.to_owned(),
        source,
    };
    match netlink.add_ingress(outer) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(NetworkError::Taken(name.to_owned()));
        }
        added => added.map_err(failed)?,
    }
    let joined = netlink
        .add_ingress(tap)
        .and_then(|()| netlink.redirect(tap, outer))
        .and_then(|()| netlink.redirect(outer, tap));
    if joined.is_err() {
        // The tap's goes with the tap.
        let _ = netlink.remove_ingress(outer);
    }
    joined.map_err(failed)
}

/// Listens on all ports of the namespace's loopback; `None`, said in the log, where this machine does not allow it.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn listen(namespace: &Namespace) -> Result<Option<Localhost>, NetworkError> {
    namespace.run(|| {
        let listening = localhost::listen(namespace.file());
        if let Err(error) = &listening {
            log::warn!("ports of the pod cannot be forwarded: {error}");
        }
        Ok(listening.ok())
    })
}

/// Takes away what was made in a pod's namespace, if that is still there. May be called again.
pub fn part(joined: &Joined) {
    let namespace = match Namespace::open(&joined.namespace) {
        Ok(namespace) => namespace,
        // With it went all that was in it.
        Err(_) => return,
    };
    let parted = namespace.run(|| {
        let mut netlink = open()?;
        let links = netlink.links().map_err(|source| NetworkError::Read {
            what: "interfaces",
            source,
        })?;
        for link in links {
            if joined.interfaces.contains(&link.name) {
                // One that has none is as it should be.
                let _ = netlink.remove_ingress(link.index);
            }
        }
        Ok(())
    });
    if let Err(error) = parted {
        log::warn!("{error}");
    }
}

fn open() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(|source| NetworkError::Read {
        what: "state",
        source,
    })
}

#[cfg(test)]
mod tests;
