//! The thread that moves everything: queues, the listener, those that are greeting, and connections, under one epoll.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::greeting::{Greetings, Heard};
use super::packet::{HEADER_LEN, Header};
use super::table::{self, Counters, Key, PORT_ANY, Table, count};
use crate::devices::virtio::queue::{Chain, Error};
use crate::devices::virtio::worker::{Events, Wake};
use crate::devices::virtio::{ActiveQueue, Fault, GuestMemory, StartError};

/// How long nobody is let in when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// As many of the guest's buffers as one read from a socket may fill: Linux has them of 4 KiB, which are too small for a system call each.
const BUFFERS: usize = 16;

/// What the thread works on.
pub struct Service {
    /// To the guest.
    pub rx: ActiveQueue,
    /// From the guest.
    pub tx: ActiveQueue,
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// Where programs on the host come in.
    pub listener: Arc<UnixListener>,
    /// The connections.
    pub table: Table,
    /// Those that are not connected yet.
    pub greetings: Greetings,
    /// What it did.
    pub counters: Arc<Counters>,
    /// Buffers of the guest's that were taken and have nothing in them yet.
    pub buffers: VecDeque<Chain>,
    /// When the listener is to be heard again, after descriptors ran out.
    pub paused: Option<Instant>,
    /// Whether that was said since somebody was last let in.
    pub complained: bool,
}

/// What is ready, as it stands in an epoll's token: a connection by its two ports, everything else where the host's port would be
/// nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Rx,
    Tx,
    Listener,
    Greeting(u32),
    Connection(Key),
}

/// The upper half of the tokens that are no connections'.
const SPECIAL: u32 = PORT_ANY;
/// Set in the lower half of a greeting's; the rest is its number.
const GREETING: u32 = 1 << 31;

impl Token {
    fn encode(self) -> u64 {
        let (high, low) = match self {
            Token::Rx => (SPECIAL, 0),
            Token::Tx => (SPECIAL, 1),
            Token::Listener => (SPECIAL, 2),
            Token::Greeting(number) => (SPECIAL, GREETING | number),
            Token::Connection(key) => (key.host, key.guest),
        };
        u64::from(high) << 32 | u64::from(low)
    }

    fn decode(token: u64) -> Option<Self> {
        let (high, low) = ((token >> 32) as u32, token as u32);
        Some(match (high, low) {
            (SPECIAL, 0) => Token::Rx,
            (SPECIAL, 1) => Token::Tx,
            (SPECIAL, 2) => Token::Listener,
            (SPECIAL, u32::MAX) => return None,
            (SPECIAL, low) if low & GREETING != 0 => Token::Greeting(low ^ GREETING),
            (SPECIAL, _) => return None,
            (host, guest) => Token::Connection(Key { host, guest }),
        })
    }
}

/// How much data has room behind the header.
fn room_in(chain: &Chain) -> usize {
    chain.writable_len().saturating_sub(HEADER_LEN)
}

impl Service {
    /// Works until it is stopped, or the guest breaks a queue.
    pub fn run(mut self, events: &mut Events, fault: &Fault) {
        if let Err(source) = self.watch(events) {
            fault.raise(&StartError::System {
                what: "watch the queues and the socket",
                source,
            });
            return;
        }
        // What was made available before the device started may have been announced to nobody.
        let mut more = true;
        loop {
            if more {
                count(&self.counters.rounds, 1);
                match self.serve(events) {
                    Ok(rest) => more = rest,
                    Err(error) => {
                        fault.raise(&error);
                        return;
                    }
                }
            }
            let timeout = if more { 0 } else { self.timeout(events) };
            for wake in events.wait(timeout) {
                match wake {
                    Wake::Stop => return,
                    Wake::Ready(token, set) => {
                        if let Some(token) = Token::decode(token) {
                            self.wake(events, token, set);
                        }
                        more = true;
                    }
                }
            }
        }
    }

    fn watch(&self, events: &mut Events) -> io::Result<()> {
        events.add_signal(&self.rx.kick, Token::Rx.encode())?;
        events.add_signal(&self.tx.kick, Token::Tx.encode())?;
        events.add(&self.listener, EventSet::IN, Token::Listener.encode())
    }

    fn wake(&mut self, events: &mut Events, token: Token, set: EventSet) {
        match token {
            // The queues are looked at anyway.
            Token::Rx | Token::Tx => {}
            Token::Listener => self.accept(events),
            Token::Greeting(number) => self.listen(events, number),
            Token::Connection(key) => self.table.ready(key, set),
        }
    }

    /// Moves packets both ways; `true` when more is waiting.
    fn serve(&mut self, events: &mut Events) -> Result<bool, Error> {
        let from_guest = self.take(events)?;
        while let Some((key, set)) = self.table.next_changed() {
            let token = Token::Connection(key).encode();
            let watched = self
                .table
                .stream(key)
                .map(|stream| events.modify(stream, set, token));
            if !matches!(watched, Some(Ok(()))) {
                self.table.give_up(key);
            }
        }
        let to_guest = self.give()?;
        Ok(from_guest || to_guest)
    }

    /// Takes packets from the guest.
    fn take(&mut self, events: &mut Events) -> Result<bool, Error> {
        let Service {
            tx, memory, table, ..
        } = self;
        tx.serve(memory, |chain| {
            let header = Header::read(chain, memory)?;
            let data = chain.readable_slices(memory, HEADER_LEN, header.len as usize)?;
            if let Some(key) = table.receive(&header, data) {
                let watched = table.stream(key).map(|stream| {
                    let token = Token::Connection(key).encode();
                    events.add(stream, table::events(false), token)
                });
                if !matches!(watched, Some(Ok(()))) {
                    table.give_up(key);
                }
            }
            Ok(0)
        })
    }

    /// Gives packets to the guest, about a queue's length of them, so that the other direction has its turn.
    fn give(&mut self) -> Result<bool, Error> {
        let mut given = 0;
        loop {
            // Without a buffer, the guest will kick when there is one.
            if !self.table.has_something() || !self.take_buffers()? {
                return Ok(false);
            }
            if given >= usize::from(self.rx.queue.size()) {
                return Ok(true);
            }
            let mut room = Vec::new();
            for chain in &self.buffers {
                room.extend(chain.writable_slices(&self.memory, HEADER_LEN, room_in(chain))?);
            }
            let Some(header) = self.table.next_packet(&room) else {
                return Ok(false);
            };
            given += self.put(&header)?;
            // At once, so that the guest reads while the next is read for it.
            if self.rx.queue.needs_interrupt(&self.memory)? {
                self.rx.interrupt.trigger();
            }
        }
    }

    /// Sees that there are buffers of the guest's, as many as may be; `false` when there is none. Kicks are on then.
    fn take_buffers(&mut self) -> Result<bool, Error> {
        while self.buffers.len() < BUFFERS {
            if let Some(chain) = self.rx.queue.pop(&self.memory)? {
                if room_in(&chain) == 0 {
                    return Err(Error::Short {
                        need: HEADER_LEN + 1,
                        have: chain.writable_len(),
                    });
                }
                self.buffers.push_back(chain);
            } else if !self.buffers.is_empty() {
                break;
            } else if !self.rx.queue.enable_kicks(&self.memory)? {
                return Ok(false);
            }
        }
        self.rx.queue.disable_kicks(&self.memory)?;
        Ok(true)
    }

    /// Gives the guest what was read for it behind `header`: each buffer is a packet of its own. Says how many there were.
    fn put(&mut self, header: &Header) -> Result<usize, Error> {
        let mut left = header.len as usize;
        let mut given = 0;
        while let Some(chain) = self.buffers.pop_front() {
            let len = left.min(room_in(&chain));
            let header = Header {
                // No more than was left, which was a u32.
                len: len as u32,
                ..*header
            };
            chain.write_at(&self.memory, 0, &header.to_bytes())?;
            // The data lies in a chain, which is less than 4 GiB long.
            let written = (HEADER_LEN + len) as u32;
            self.rx
                .queue
                .complete(&self.memory, chain.head(), written)?;
            given += 1;
            left -= len;
            if left == 0 {
                break;
            }
        }
        Ok(given)
    }

    /// Lets programs on the host in, as many as wait and not more than a number, so that others have their turn.
    fn accept(&mut self, events: &mut Events) {
        for _ in 0..64 {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    self.complained = false;
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let number = self.greetings.add(stream);
                    let token = Token::Greeting(number).encode();
                    let watched = self
                        .greetings
                        .stream(number)
                        .map(|stream| events.add(stream, EventSet::IN, token));
                    if matches!(watched, Some(Ok(()))) {
                        // Most have said it already.
                        self.listen(events, number);
                    }
                    // Else it is sent away when its time is up.
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // No descriptor is left, or no memory. Whoever waits keeps the listener ready, so it is not looked at for a while.
                    _ => {
                        if !std::mem::replace(&mut self.complained, true) {
                            log::warn!("virtio-vsock: cannot let anyone in: {error}");
                        }
                        let _ = events.remove(&self.listener);
                        self.paused = Some(Instant::now() + PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Hears what a program on the host wants.
    fn listen(&mut self, events: &mut Events, number: u32) {
        match self.greetings.listen(number) {
            Heard::Nothing => {}
            Heard::Nonsense => log::debug!("virtio-vsock: a caller made no sense"),
            Heard::Port(stream, port) => {
                let Some(key) = self.table.connect_to_guest(stream, port) else {
                    log::warn!("virtio-vsock: too many connections: no more to the guest");
                    return;
                };
                let watched = self.table.stream(key).map(|stream| {
                    let token = Token::Connection(key).encode();
                    events.modify(stream, table::events(false), token)
                });
                if !matches!(watched, Some(Ok(()))) {
                    self.table.give_up(key);
                }
            }
        }
    }

    /// How long to wait for events in milliseconds: until the next thing is to be done by the clock, or for ever.
    fn timeout(&mut self, events: &mut Events) -> i32 {
        let now = Instant::now();
        if self.paused.is_some_and(|until| until <= now) {
            let token = Token::Listener.encode();
            self.paused = match events.add(&self.listener, EventSet::IN, token) {
                Ok(()) => None,
                Err(_) => Some(now + PAUSE),
            };
        }
        let next = [self.greetings.expire(now), self.paused];
        match next.into_iter().flatten().min() {
            None => -1,
            // Rounded up, lest it wake too early.
            Some(until) => (until - now)
                .as_millis()
                .saturating_add(1)
                .try_into()
                .unwrap_or(i32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::vsock::greeting::NUMBERS;

    #[test]
    fn tokens_are_told_apart() {
        let key = |host, guest| Token::Connection(Key { host, guest });
        for token in [
            Token::Rx,
            Token::Tx,
            Token::Listener,
            Token::Greeting(0),
            Token::Greeting(NUMBERS - 1),
            key(0, 0),
            key(PORT_ANY - 1, PORT_ANY - 1),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None, "the worker's own");
    }
}
