//! One direction of a connection: what the guest has sent, on its way into the host's socket.
//!
//! It goes from guest memory straight into the socket. What the socket does not take waits here, which can never be more than
//! what the guest was told that we hold (virtio 1.2, 5.10.6.3).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

use crate::devices::virtio::guest_io;

/// The way to the host.
#[derive(Debug)]
pub struct ToHost {
    waiting: VecDeque<u8>,
    /// How much may wait.
    alloc: u32,
    /// How much ever came from the guest; wraps.
    received: u32,
    /// How much of it is in the socket; wraps.
    forwarded: u32,
    /// What the guest was last told of `forwarded`.
    told: u32,
    /// Whether the socket may take something: it has not said no since it last said yes.
    writable: bool,
    /// The other end takes no more; everything goes nowhere.
    closed: bool,
}

/// The guest sent more than it was allowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

impl ToHost {
    /// Holds up to `alloc` bytes.
    pub fn new(alloc: u32) -> Self {
        ToHost {
            waiting: VecDeque::new(),
            alloc,
            received: 0,
            forwarded: 0,
            told: 0,
            writable: true,
            closed: false,
        }
    }

    /// Takes what a packet carries.
    ///
    /// # Errors
    /// When the guest had no credit for it.
    pub fn take(
        &mut self,
        stream: &UnixStream,
        mut data: Vec<VolatileSlice>,
    ) -> Result<(), Overflow> {
        let held = self.received.wrapping_sub(self.forwarded);
        let len = u32::try_from(guest_io::total(&data)).map_err(|_| Overflow)?;
        if held.checked_add(len).is_none_or(|sum| sum > self.alloc) {
            return Err(Overflow);
        }
        self.received = self.received.wrapping_add(len);
        // What waits goes first.
        while self.waiting.is_empty() && !data.is_empty() && self.can_write() {
            let sent = guest_io::send(stream, &data);
            let Some(count) = self.written(sent) else {
                break;
            };
            // It cannot fail, and if it did, the rest would be counted but never sent.
            let Ok(rest) = guest_io::rest(&data, count) else {
                self.close();
                break;
            };
            data = rest;
        }
        if self.closed {
            self.forwarded = self.received;
            return Ok(());
        }
        for slice in data {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            self.waiting.extend(bytes);
        }
        Ok(())
    }

    /// The socket may take something again: sends what waits.
    pub fn flush(&mut self, mut stream: &UnixStream) {
        self.writable = true;
        while !self.waiting.is_empty() && self.can_write() {
            let (first, _) = self.waiting.as_slices();
            let sent = stream.write(first);
            if let Some(count) = self.written(sent) {
                self.waiting.drain(..count);
            }
        }
        if self.waiting.is_empty() {
            // Most connections are idle most of the time.
            self.waiting = VecDeque::new();
        }
    }

    /// The other end takes no more: drops what waits, and what comes.
    pub fn close(&mut self) {
        self.closed = true;
        self.waiting = VecDeque::new();
        self.forwarded = self.received;
    }

    /// Whether the other end takes no more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What a packet to the guest says of this direction: `buf_alloc` and `fwd_cnt`.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.alloc, self.forwarded)
    }

    /// Whether the guest believes that it can send much less than it can: a quarter of all.
    ///
    /// A guest that has used up its credit hears of it, since all of it is more than a quarter.
    pub fn is_news(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) > self.alloc / 4
    }

    fn can_write(&self) -> bool {
        self.writable && !self.closed
    }

    /// Accounts for an attempt to write: how much, if it was.
    fn written(&mut self, result: io::Result<usize>) -> Option<usize> {
        match result {
            Ok(count) => {
                // At most what was received, which is a u32.
                self.forwarded = self.forwarded.wrapping_add(count as u32);
                Some(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                None
            }
            Err(_) => {
                self.close();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

    use super::*;
    use crate::devices::virtio::GuestMemory;
    use crate::devices::virtio::test_driver::ram;

    fn slices(memory: &GuestMemory, len: usize) -> Vec<VolatileSlice<'_>> {
        memory
            .get_slices(GuestAddress(0), len, Permissions::ReadWrite)
            .unwrap()
            .map(|slice| slice.unwrap())
            .collect()
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn no_more_is_held_than_was_promised() {
        let memory = ram(0x100000);
        let (ours, mut theirs) = pair();
        let mut way = ToHost::new(1000);
        assert_eq!(way.take(&ours, slices(&memory, 1001)), Err(Overflow));
        // Until the socket is full, whatever is taken is passed on at once.
        let mut sent = 0;
        while way.is_empty() {
            way.take(&ours, slices(&memory, 1000)).unwrap();
            sent += 1000;
            assert!(sent < 10_000_000);
        }
        let left = way.alloc - (way.received - way.forwarded);
        assert_eq!(
            way.take(&ours, slices(&memory, left as usize + 1)),
            Err(Overflow)
        );
        way.take(&ours, slices(&memory, left as usize)).unwrap();
        assert_eq!(way.waiting.len(), 1000);

        sent += left as usize;
        let mut buffer = vec![0; sent];
        theirs.read_exact(&mut buffer[..sent - 1000]).unwrap();
        way.flush(&ours);
        assert!(way.is_empty());
        theirs.read_exact(&mut buffer[..1000]).unwrap();
    }

    #[test]
    fn counters_wrap_around() {
        let memory = ram(0x1000);
        let (ours, mut theirs) = pair();
        let mut way = ToHost::new(1000);
        way.received = u32::MAX - 100;
        way.forwarded = u32::MAX - 100;
        way.told = u32::MAX - 100;
        way.take(&ours, slices(&memory, 251)).unwrap();
        theirs.read_exact(&mut [0; 251]).unwrap();
        assert!(way.is_news());
        assert_eq!(way.tell(), (1000, 150));
        assert!(!way.is_news());
    }

    #[test]
    fn a_closed_end_swallows_everything() {
        let memory = ram(0x1000);
        let (ours, theirs) = pair();
        let mut way = ToHost::new(1000);
        drop(theirs);
        for _ in 0..10 {
            way.take(&ours, slices(&memory, 1000)).unwrap();
        }
        assert!(way.is_closed() && way.is_empty() && way.is_news());
    }
}
