//! Bytes on their way from one thread to another. There may be so many of them and no more, and the one that sends never waits.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The end that sends. The receiver hears of it when this is dropped.
#[derive(Debug)]
pub struct Sender(Arc<Shared>);

/// The end that receives.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    state: Mutex<State>,
    /// There is something to receive, or nothing will come any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    closed: bool,
}

/// A way for bytes of which `limit` may wait. It takes as much memory as has waited at once.
pub fn backlog(limit: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        limit,
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Sends as many of `bytes` as there is room for, and says how many.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut state = self.0.lock();
        let room = self.0.limit.saturating_sub(state.bytes.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        state.bytes.extend(taken);
        self.0.changed.notify_one();
        taken.len()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl Receiver {
    /// Waits until there is something, and appends all of it to `to`. `false` when nothing will come any more.
    pub fn receive(&self, to: &mut Vec<u8>) -> bool {
        let state = self.0.lock();
        let wait = |state: &mut State| state.bytes.is_empty() && !state.closed;
        let waited = self.0.changed.wait_while(state, wait);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        to.extend(state.bytes.drain(..));
        !to.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_not_taken() {
        let (sender, receiver) = backlog(4);
        assert_eq!(sender.send(b"abc"), 3);
        assert_eq!(sender.send(b"def"), 1);
        assert_eq!(sender.send(b"g"), 0);
        let mut bytes = Vec::new();
        assert!(receiver.receive(&mut bytes));
        assert_eq!(bytes, b"abcd");
        assert_eq!(sender.send(b"efgh"), 4);
    }

    #[test]
    fn what_was_sent_before_the_end_is_received() {
        let (sender, receiver) = backlog(64);
        let sent = std::thread::spawn(move || {
            for _ in 0..10 {
                assert_eq!(sender.send(b"x"), 1);
            }
        });
        let mut bytes = Vec::new();
        let mut all = 0;
        while receiver.receive(&mut bytes) {
            all += bytes.len();
            bytes.clear();
        }
        sent.join().unwrap();
        assert_eq!(all, 10);
    }
}
