//! Traffic control: handing all packets that come in by one link out by another (tc-mirred(8), tc-matchall(8)).

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption,
};

use crate::Index;
use crate::socket::{Change, Netlink};

/// The kind of queue that sees what comes in.
const INGRESS: &str = "ingress";
/// Its own handle, `ffff:`, by which filters name it.
const INGRESS_HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// ETH_P_ALL (linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 3;

impl Netlink {
    /// Gives a link a queue for what comes in, on which there may be filters.
    ///
    /// # Errors
    /// `AlreadyExists` when it has one; what else the kernel says.
    pub fn add_ingress(&mut self, link: Index) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewQueueDiscipline(ingress(link)?);
        self.change(message, Change::New)
    }

    /// Takes a link's queue for what comes in away, with all filters on it.
    ///
    /// # Errors
    /// What the kernel says, for instance that it has none.
    pub fn remove_ingress(&mut self, link: Index) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(ingress(link)?);
        self.change(message, Change::Existing)
    }

    /// Has all packets that come in by `from`, which has the queue for it, go out by `to`.
    ///
    /// # Errors
    /// What the kernel says, for instance that it has no such filter.
    pub fn redirect(&mut self, from: Index, to: Index) -> io::Result<()> {
        let mut message = TcMessage::with_index(number(from)?);
        message.header.parent = INGRESS_HANDLE;
        // The priority of the filter above, the protocol below: the first, of all protocols in the network's order of bytes.
        message.header.info = 1 << 16 | u32::from(ALL_PROTOCOLS.to_be());
        let mut mirror = TcMirror::default();
        mirror.generic = TcActionGeneric::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = to.get();
        let mut action = TcAction::default();
        action.attributes = vec![
            TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
                mirror,
            ))]),
        ];
        message.attributes = vec![
            TcAttribute::Kind(TcFilterMatchAll::KIND.to_owned()),
            TcAttribute::Options(vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(
                vec![action],
            ))]),
        ];
        self.change(RouteNetlinkMessage::NewTrafficFilter(message), Change::New)
    }
}

fn ingress(link: Index) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(number(link)?);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS_HANDLE;
    message.attributes = vec![TcAttribute::Kind(INGRESS.to_owned())];
    Ok(message)
}

fn number(link: Index) -> io::Result<i32> {
    i32::try_from(link.get()).map_err(io::Error::other)
}
