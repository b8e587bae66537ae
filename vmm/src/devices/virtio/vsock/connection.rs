//! One connection between a unix socket on the host and a stream socket in the guest.
//!
//! It knows nothing of the others, of ports or of queues. Its socket is watched edge-triggered: it is believed to be readable and
//! writable until it says that it would block, so nobody is woken for data that nobody can take.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::to_host::ToHost;
use crate::devices::virtio::guest_io;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    phase: Phase,
    to_host: ToHost,
    /// What the guest can hold, has passed on, and was sent.
    guest_alloc: u32,
    guest_forwarded: u32,
    sent: u32,
    /// Whether the socket may have something to read.
    readable: bool,
    /// The directions that the guest has ended, as SHUTDOWN flags in its words.
    guest_ended: u32,
    /// The directions that the host has ended, in the host's words; and what the guest was told of it.
    host_ended: u32,
    told_ended: u32,
    owed: Owed,
    /// Whether it stands in the line of those that have something for the guest.
    pub in_line: bool,
    /// Whether its socket is watched for taking something again.
    pub watched_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host wants it; the guest has not answered. The host is told this port when it does.
    Requested { host_port: u32 },
    /// Both want it.
    Open,
    /// The guest is done with it. What it sent before it was done is still on its way to the host.
    Lingering,
}

/// Packets that the guest is to be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    /// A request for credit was sent and has not been answered by any.
    credit_asked: bool,
}

/// What becomes of a connection after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Keep,
    /// It is over, and the guest must be told.
    Reset,
    /// It is over, and the guest knows.
    Forget,
}

/// A packet for the guest; the header's other fields are the connection's place and credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is for.
    pub op: Op,
    /// Of a SHUTDOWN.
    pub flags: u32,
    /// The number of bytes that were put behind the header.
    pub len: u32,
}

impl Connection {
    /// The host asks the guest; `host_port` is what the host will be told. Up to `alloc` bytes from the guest are held.
    pub fn to_guest(stream: UnixStream, host_port: u32, alloc: u32) -> Self {
        let mut connection = Self::new(stream, Phase::Requested { host_port }, alloc);
        connection.owed.request = true;
        connection
    }

    /// The guest has asked by `request`, and `stream` leads to whom it asked for.
    pub fn to_host(stream: UnixStream, request: &Header, alloc: u32) -> Self {
        let mut connection = Self::new(stream, Phase::Open, alloc);
        connection.owed.response = true;
        connection.note_credit(request);
        connection
    }

    fn new(stream: UnixStream, phase: Phase, alloc: u32) -> Self {
        Connection {
            stream,
            phase,
            to_host: ToHost::new(alloc),
            guest_alloc: 0,
            guest_forwarded: 0,
            sent: 0,
            // The first edge may have passed.
            readable: true,
            guest_ended: 0,
            host_ended: 0,
            told_ended: 0,
            owed: Owed::default(),
            in_line: false,
            watched_out: false,
        }
    }

    /// The socket on the host.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether its socket is to be watched for taking something again: only while something waits for that, or every read of the
    /// program's would wake us.
    pub fn waits_to_write(&self) -> bool {
        !self.to_host.is_empty()
    }

    /// Whether the guest is done with it, so that a packet from the guest cannot be meant for it.
    pub fn is_lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// What a packet to the guest says of our credit.
    pub fn credit(&mut self) -> (u32, u32) {
        self.to_host.tell()
    }

    /// A packet came from the guest.
    pub fn receive(&mut self, header: &Header, op: Op, data: Vec<VolatileSlice>) -> After {
        self.note_credit(header);
        match (self.phase, op) {
            (_, Op::Rst) => return self.guest_reset(),
            (Phase::Requested { host_port }, Op::Response) => {
                self.phase = Phase::Open;
                self.say_ok(host_port);
            }
            (Phase::Open, Op::Rw) if self.guest_ended & SHUTDOWN_SEND == 0 => {
                if self.to_host.take(&self.stream, data).is_err() {
                    return After::Reset;
                }
            }
            (Phase::Open, Op::Shutdown) => {
                self.guest_ended |= header.flags & SHUTDOWN_BOTH;
                if self.guest_ended & SHUTDOWN_RECEIVE != 0 {
                    // It fails when the other end is gone, which is noticed elsewhere; likewise below.
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
            }
            (Phase::Open, Op::CreditUpdate) => {}
            (Phase::Open, Op::CreditRequest) => self.owed.credit_update = true,
            _ => return After::Reset,
        }
        self.settle()
    }

    /// The socket is ready in these ways.
    pub fn ready(&mut self, set: EventSet) -> After {
        let gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if gone {
            if matches!(self.phase, Phase::Requested { .. }) {
                return After::Reset;
            }
            self.to_host.close();
        }
        if gone || set.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            self.readable = true;
        }
        if set.contains(EventSet::OUT) && !self.to_host.is_closed() {
            self.to_host.flush(&self.stream);
        }
        self.settle()
    }

    /// Whether the guest is to be sent something, as far as is known without a try.
    pub fn has_something(&self) -> bool {
        match self.phase {
            Phase::Requested { .. } => self.owed.request,
            Phase::Lingering => false,
            Phase::Open => {
                self.owed.response
                    || self.can_read() && (self.credit_left() > 0 || !self.owed.credit_asked)
                    || self.host_ended != self.told_ended
                    || self.owed.credit_update
                    || self.to_host.is_news()
            }
        }
    }

    /// The next packet for the guest, its data put into `room`; `None` when there turns out to be none.
    pub fn next_packet(&mut self, room: &[VolatileSlice]) -> Option<Packet> {
        let packet = |op| Packet {
            op,
            flags: 0,
            len: 0,
        };
        match self.phase {
            Phase::Requested { .. } => {
                return std::mem::take(&mut self.owed.request).then_some(packet(Op::Request));
            }
            Phase::Lingering => return None,
            Phase::Open => {}
        }
        if std::mem::take(&mut self.owed.response) {
            return Some(packet(Op::Response));
        }
        if self.can_read() {
            let credit = self.credit_left();
            if credit > 0 {
                if let Some(len) = self.read(room, credit) {
                    return Some(Packet {
                        len,
                        ..packet(Op::Rw)
                    });
                }
            } else if !std::mem::replace(&mut self.owed.credit_asked, true) {
                return Some(packet(Op::CreditRequest));
            }
        }
        if self.host_ended != self.told_ended {
            self.told_ended = self.host_ended;
            return Some(Packet {
                flags: self.host_ended,
                ..packet(Op::Shutdown)
            });
        }
        let owed = std::mem::take(&mut self.owed.credit_update);
        (owed || self.to_host.is_news()).then_some(packet(Op::CreditUpdate))
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit_left() > 0 {
            self.owed.credit_asked = false;
        }
    }

    /// How much the guest can take. A guest that lies about it only makes us send what it then has no room for.
    fn credit_left(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_alloc.saturating_sub(under_way)
    }

    /// Whether there may be something to read that the guest wants.
    fn can_read(&self) -> bool {
        self.readable
            && self.host_ended & SHUTDOWN_SEND == 0
            && self.guest_ended & SHUTDOWN_RECEIVE == 0
    }

    /// Reads up to `credit` bytes into `room`; notes when there is nothing, and when there will never be.
    fn read(&mut self, room: &[VolatileSlice], credit: u32) -> Option<u32> {
        let mut left = credit as usize;
        let mut into = Vec::with_capacity(room.len());
        for slice in room {
            let take = slice.len().min(left);
            // Within the slice, so it is there.
            if let Ok(part) = slice.subslice(0, take)
                && take > 0
            {
                into.push(part);
            }
            left -= take;
        }
        match guest_io::receive(&self.stream, &into) {
            Ok(0) => self.host_ended |= SHUTDOWN_SEND,
            Ok(count) => {
                // At most `credit`.
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                return Some(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_ended |= SHUTDOWN_SEND;
                self.to_host.close();
            }
        }
        self.note_closed();
        None
    }

    /// The guest answered the host's request; the host learns its port, as the convention of this socket has it.
    fn say_ok(&mut self, host_port: u32) {
        let line = format!("OK {host_port}\n");
        // The socket is empty, so it takes all or is gone.
        match (&self.stream).write(line.as_bytes()) {
            Ok(count) if count == line.len() => {}
            _ => self.to_host.close(),
        }
    }

    /// The guest wants to hear no more of it.
    fn guest_reset(&mut self) -> After {
        // A guest that said properly that it will send no more only gave up waiting for us (Linux does after 8 seconds). What it
        // sent is not lost because its reader on the host is slow.
        if self.guest_ended & SHUTDOWN_SEND != 0 && !self.to_host.is_empty() {
            self.phase = Phase::Lingering;
            return After::Keep;
        }
        After::Forget
    }

    /// Draws the conclusions.
    fn settle(&mut self) -> After {
        self.note_closed();
        if !self.to_host.is_empty() {
            return After::Keep;
        }
        if self.phase == Phase::Lingering {
            return After::Forget;
        }
        if self.guest_ended == SHUTDOWN_BOTH {
            self.drain();
            // The answer that completes an orderly end (virtio 1.2, 5.10.6.6).
            return After::Reset;
        }
        if self.guest_ended & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        After::Keep
    }

    /// Throws away what the guest did not want to read, as much as a socket holds: to close a socket with something in it turns
    /// the orderly end that the program on the host is about to see into an error.
    fn drain(&self) {
        let mut scratch = [0; 16 * 1024];
        for _ in 0..64 {
            match (&self.stream).read(&mut scratch) {
                Ok(count) if count > 0 => {}
                _ => break,
            }
        }
    }

    fn note_closed(&mut self) {
        if self.to_host.is_closed() {
            self.host_ended |= SHUTDOWN_RECEIVE;
        }
    }
}
