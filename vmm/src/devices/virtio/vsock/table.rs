//! All connections: which packet belongs to which, whose turn it is to send the guest something, and what is answered to a packet
//! that belongs to none.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{Domain, SockAddr, Socket, Type};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::connection::{After, Connection};
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};

/// VMADDR_PORT_ANY, which is nobody's port.
pub const PORT_ANY: u32 = u32::MAX;
/// As many connections as there may be.
const CONNECTIONS_MAX: usize = 4096;
/// How much of what the guest sent a connection may hold: much for the first, little for those beyond a number that no pod
/// needs. All together hold less than 128 MiB.
const ALLOC_FIRST: u32 = 256 * 1024;
const ALLOC_BEYOND: u32 = 16 * 1024;
const FIRST: usize = 256;
/// As many answers to packets that belong nowhere may wait for room in the guest's queue; the rest go unanswered.
const RESETS_MAX: usize = 4096;
/// Ports of programs on the host that connect to the guest: from here on.
const HOST_PORTS: u32 = 1 << 30;
/// As many of them as there are.
const HOST_PORT_COUNT: u32 = 1 << 30;

/// A connection's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The port on the host.
    pub host: u32,
    /// The port in the guest.
    pub guest: u32,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that the host asked for.
    pub to_guest: AtomicU64,
    /// Connections that the guest asked for and got.
    pub to_host: AtomicU64,
    /// Resets sent to the guest.
    pub resets: AtomicU64,
    /// Packets from the guest that were not meant for us, or that nothing could be answered to.
    pub dropped: AtomicU64,
    /// Bytes from the guest.
    pub bytes_to_host: AtomicU64,
    /// Bytes to the guest.
    pub bytes_to_guest: AtomicU64,
    /// Rounds of the thread: what is ready, then both queues.
    pub rounds: AtomicU64,
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The connections.
#[derive(Debug)]
pub struct Table {
    guest_cid: u64,
    socket: PathBuf,
    connections: HashMap<Key, Connection>,
    /// Those that have something for the guest, each once, in the order of their turns.
    line: VecDeque<Key>,
    /// Those whose sockets are to be watched for something else than before.
    changed: Vec<Key>,
    /// Resets to be sent first of all.
    resets: VecDeque<Header>,
    next_port: u32,
    counters: Arc<Counters>,
}

impl Table {
    /// No connections. Whom the guest connects to listens at `socket` with `_<port>` behind it.
    pub fn new(guest_cid: u64, socket: PathBuf, counters: Arc<Counters>) -> Self {
        Table {
            guest_cid,
            socket,
            connections: HashMap::new(),
            line: VecDeque::new(),
            changed: Vec::new(),
            resets: VecDeque::new(),
            next_port: 0,
            counters,
        }
    }

    /// A program on the host wants `port` of the guest; its socket is to be watched under the name that is returned, edge-triggered.
    /// `None`, and the socket closed, when there are too many.
    pub fn connect_to_guest(&mut self, stream: UnixStream, port: u32) -> Option<Key> {
        let alloc = self.alloc()?;
        let key = loop {
            let host = HOST_PORTS + self.next_port;
            self.next_port = (self.next_port + 1) % HOST_PORT_COUNT;
            let key = Key { host, guest: port };
            // There are many more ports than connections.
            if !self.connections.contains_key(&key) {
                break key;
            }
        };
        let connection = Connection::to_guest(stream, key.host, alloc);
        self.connections.insert(key, connection);
        count(&self.counters.to_guest, 1);
        self.line_up(key);
        Some(key)
    }

    /// A packet came from the guest. When it made a connection, its socket is to be watched under the name that is returned.
    pub fn receive(&mut self, header: &Header, data: Vec<VolatileSlice>) -> Option<Key> {
        if header.src_cid != self.guest_cid {
            count(&self.counters.dropped, 1);
            return None;
        }
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        let op = Op::from_number(header.op);
        let ours = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        match (self.connections.get_mut(&key), op) {
            (Some(connection), Some(op)) if ours && !connection.is_lingering() => {
                if op == Op::Rw {
                    count(&self.counters.bytes_to_host, header.len.into());
                }
                let after = connection.receive(header, op, data);
                self.apply(key, after);
                None
            }
            (None, Some(Op::Request)) if ours => match self.connect_to_host(key, header) {
                Ok(()) => Some(key),
                Err(error) => {
                    log::debug!("virtio-vsock: no connection to port {}: {error}", key.host);
                    self.answer_reset(header);
                    None
                }
            },
            // Nothing is answered to a reset, or there would be no end.
            (_, Some(Op::Rst)) => None,
            _ => {
                if ours
                    && self
                        .connections
                        .get(&key)
                        .is_some_and(|c| !c.is_lingering())
                {
                    self.connections.remove(&key);
                }
                self.answer_reset(header);
                None
            }
        }
    }

    /// The socket of a connection is ready in these ways.
    pub fn ready(&mut self, key: Key, set: EventSet) {
        // It may have ended since.
        if let Some(connection) = self.connections.get_mut(&key) {
            let after = connection.ready(set);
            self.apply(key, after);
        }
    }

    /// The socket of a connection.
    pub fn stream(&self, key: Key) -> Option<&UnixStream> {
        self.connections.get(&key).map(Connection::stream)
    }

    /// A connection whose socket is to be watched for something else than before, if there is one, and for what.
    pub fn next_changed(&mut self) -> Option<(Key, EventSet)> {
        while let Some(key) = self.changed.pop() {
            if let Some(connection) = self.connections.get(&key) {
                return Some((key, events(connection.watched_out)));
            }
        }
        None
    }

    /// Ends a connection whose socket cannot be watched.
    pub fn give_up(&mut self, key: Key) {
        self.apply(key, After::Reset);
    }

    /// Whether there may be something for the guest.
    pub fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// The next packet for the guest, its data put into `room`.
    pub fn next_packet(&mut self, room: &[VolatileSlice]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            count(&self.counters.resets, 1);
            return Some(reset);
        }
        while let Some(key) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.in_line = false;
            let packet = connection.next_packet(room);
            let (buf_alloc, fwd_cnt) = match packet {
                Some(_) => connection.credit(),
                None => (0, 0),
            };
            self.line_up(key);
            if let Some(packet) = packet {
                count(&self.counters.bytes_to_guest, packet.len.into());
                return Some(Header {
                    op: packet.op as u16,
                    flags: packet.flags,
                    len: packet.len,
                    buf_alloc,
                    fwd_cnt,
                    ..self.header(key)
                });
            }
        }
        None
    }

    fn header(&self, key: Key) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }

    /// How much a new connection may hold; `None` when there are too many.
    fn alloc(&self) -> Option<u32> {
        match self.connections.len() {
            CONNECTIONS_MAX.. => None,
            FIRST.. => Some(ALLOC_BEYOND),
            _ => Some(ALLOC_FIRST),
        }
    }

    fn connect_to_host(&mut self, key: Key, request: &Header) -> io::Result<()> {
        if key.host == PORT_ANY || key.guest == PORT_ANY {
            return Err(io::Error::other("it is nobody's"));
        }
        let alloc = self
            .alloc()
            .ok_or_else(|| io::Error::other("too many connections"))?;
        let stream = connect(&listener_path(&self.socket, key.host))?;
        let connection = Connection::to_host(stream, request, alloc);
        self.connections.insert(key, connection);
        count(&self.counters.to_host, 1);
        self.line_up(key);
        Ok(())
    }

    /// Does what is to be done with a connection after something happened to it.
    fn apply(&mut self, key: Key, after: After) {
        match after {
            After::Keep => {
                self.line_up(key);
                self.watch_out(key);
            }
            After::Forget => {
                self.connections.remove(&key);
            }
            After::Reset => {
                self.connections.remove(&key);
                let header = self.header(key);
                self.reset(header);
            }
        }
    }

    /// Notes when a connection begins or ends to wait for its socket to take something.
    fn watch_out(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key) {
            let waits = connection.waits_to_write();
            if connection.watched_out != waits {
                connection.watched_out = waits;
                self.changed.push(key);
            }
        }
    }

    /// Puts a connection in the line, if it has something for the guest and does not stand there.
    fn line_up(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.in_line
            && connection.has_something()
        {
            connection.in_line = true;
            self.line.push_back(key);
        }
    }

    /// Answers a packet from the guest by a reset, from whom and of which type it believed that it was speaking to.
    fn answer_reset(&mut self, to: &Header) {
        self.reset(Header {
            src_cid: to.dst_cid,
            dst_cid: to.src_cid,
            src_port: to.dst_port,
            dst_port: to.src_port,
            kind: to.kind,
            ..Header::default()
        });
    }

    fn reset(&mut self, header: Header) {
        if self.resets.len() >= RESETS_MAX {
            count(&self.counters.dropped, 1);
            return;
        }
        self.resets.push_back(Header {
            op: Op::Rst as u16,
            ..header
        });
    }
}

/// What a connection's socket is watched for.
pub fn events(out: bool) -> EventSet {
    let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if out { events | EventSet::OUT } else { events }
}

/// Where the program listens to whom the guest reaches as `port` of the host.
pub fn listener_path(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Connects without waiting: a listener that is too busy to be reached at once is not reached.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}
