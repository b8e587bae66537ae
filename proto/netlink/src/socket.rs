//! Requests to the kernel and their answers (netlink(7), rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// More than the kernel writes into one datagram, 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// How often a list is asked for anew that has changed while it was read.
const TRIES: usize = 8;

/// A socket to the kernel's network, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What is done to a thing that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is changed, or removed; it must be there.
    Existing,
    /// It must not be there.
    New,
    /// It is replaced.
    NewOrReplaced,
}

impl Change {
    fn flags(self) -> u16 {
        match self {
            Change::Existing => 0,
            Change::New => NLM_F_CREATE | NLM_F_EXCL,
            Change::NewOrReplaced => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// What one datagram of a list says about those to come.
enum More {
    Comes,
    Ended,
    /// The list has changed meanwhile, and is no good.
    Again,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Has something changed, and waits for the answer.
    pub(crate) fn change(
        &mut self,
        message: RouteNetlinkMessage,
        change: Change,
    ) -> io::Result<()> {
        self.send(message, NLM_F_ACK | change.flags())?;
        loop {
            let mut done = None;
            self.receive(|_, payload| {
                if let NetlinkPayload::Error(error) = payload {
                    done = Some(match error.code {
                        None => Ok(()),
                        Some(_) => Err(error.to_io()),
                    });
                }
                Ok(())
            })?;
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// Asks for all things of a kind.
    pub(crate) fn list(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..TRIES {
            self.send(message.clone(), NLM_F_DUMP)?;
            let mut found = Vec::new();
            let mut changed = false;
            loop {
                match self.receive_list(&mut found)? {
                    More::Comes => {}
                    More::Again => changed = true,
                    More::Ended if changed => break,
                    More::Ended => return Ok(found),
                }
            }
        }
        Err(io::Error::other(
            "the network changes too fast to be looked at",
        ))
    }

    fn receive_list(&mut self, found: &mut Vec<RouteNetlinkMessage>) -> io::Result<More> {
        let mut more = More::Comes;
        self.receive(|header, payload| {
            if header.flags & NLM_F_DUMP_INTR != 0 {
                more = More::Again;
            }
            match payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Done(_) => more = More::Ended,
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
            Ok(())
        })?;
        Ok(more)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives one datagram, and hands on what in it belongs to the last request.
    fn receive(
        &mut self,
        mut each: impl FnMut(&NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>) -> io::Result<()>,
    ) -> io::Result<()> {
        let length = recv(
            self.socket.as_raw_fd(),
            &mut self.buffer,
            MsgFlags::MSG_TRUNC,
        )?;
        let mut rest = self
            .buffer
            .get(..length)
            .ok_or_else(|| malformed("an answer is longer than the kernel's answers are"))?;
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(malformed)?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            // Each begins at a multiple of four bytes. One has a header at least, or it would not have been read.
            let step = length.max(1).checked_next_multiple_of(4);
            rest = step.and_then(|step| rest.get(step..)).unwrap_or_default();
            if message.header.sequence_number == self.sequence {
                each(&message.header, message.payload)?;
            }
        }
        Ok(())
    }
}

fn malformed(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
