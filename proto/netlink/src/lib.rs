//! The network of the kernel, as it is seen from one network namespace: its links, their addresses, routes and neighbours, and
//! the redirection of one link's packets to another.
//!
//! The shim reads by it what a pod's namespace has, and the agent makes the same in the guest. So each of [`Address`], [`Route`]
//! and [`Neighbour`] can be read and be written, and holds as much as makes the copy behave like the original.
//!
//! A [`Netlink`] belongs to the namespace of the thread that opened it. Calls block no longer than the kernel takes to answer.

mod address;
mod link;
mod neighbour;
mod route;
mod socket;
mod traffic;

#[cfg(test)]
mod tests;

pub use address::{Address, Detection, Origin};
pub use link::{Kind, Link, MacAddress};
pub use neighbour::Neighbour;
pub use route::{PROTOCOL_RA, PROTOCOL_REDIRECT, Prefix, Route, Routes};
pub use socket::Netlink;

/// The number of a link in its namespace, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Index(std::num::NonZeroU32);

impl Index {
    fn new(number: u32) -> Option<Self> {
        std::num::NonZeroU32::new(number).map(Self)
    }

    fn get(self) -> u32 {
        self.0.get()
    }
}

impl std::fmt::Display for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
