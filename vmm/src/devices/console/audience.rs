//! Who hears the console beside its own other end, for as long as they like.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

/// How much of what was said last a newcomer is told, in bytes: a few screens of a terminal.
const RECENT: usize = 16 << 10;
/// How many pieces may wait for a listener. One that is slower misses the oldest.
const BACKLOG: usize = 16;

/// A piece of output.
pub type Piece = Arc<[u8]>;

/// All who listen.
#[derive(Debug)]
pub struct Audience(Mutex<State>);

#[derive(Debug)]
struct State {
    recent: VecDeque<u8>,
    listeners: broadcast::Sender<Piece>,
}

/// One who listens. It ends when nothing will be said any more.
#[derive(Debug)]
pub struct Listener {
    /// What was said last.
    pub recent: Vec<u8>,
    /// What is said from then on.
    pub live: broadcast::Receiver<Piece>,
}

impl Default for Audience {
    fn default() -> Self {
        Audience(Mutex::new(State {
            recent: VecDeque::new(),
            listeners: broadcast::Sender::new(BACKLOG),
        }))
    }
}

impl Audience {
    /// Says `bytes` to all, and waits for nobody.
    pub fn say(&self, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = bytes.get(bytes.len().saturating_sub(RECENT)..);
        state.recent.extend(new.unwrap_or_default());
        let old = state.recent.len().saturating_sub(RECENT);
        state.recent.drain(..old);
        if state.listeners.receiver_count() > 0 {
            // It fails when the last has just gone.
            let _ = state.listeners.send(bytes.into());
        }
    }

    /// Listens from now on.
    pub fn join(&self) -> Listener {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Listener {
            recent: state.recent.iter().copied().collect(),
            live: state.listeners.subscribe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::broadcast::error::TryRecvError;

    #[test]
    fn a_newcomer_hears_the_last_of_what_was_said_and_all_that_follows() {
        let audience = Audience::default();
        audience.say(&[b'x'; RECENT + 1]);
        audience.say(b"login: ");
        let mut listener = audience.join();
        audience.say(b"root");
        assert_eq!(listener.recent.len(), RECENT);
        assert!(listener.recent.ends_with(b"xlogin: "));
        assert_eq!(&*listener.live.try_recv().unwrap(), b"root");
        drop(audience);
        assert_eq!(listener.live.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn one_that_does_not_listen_misses_the_oldest_and_holds_nobody_up() {
        let audience = Audience::default();
        let mut slow = audience.join();
        for number in 0..100 {
            audience.say(&[number]);
        }
        assert_eq!(slow.live.try_recv(), Err(TryRecvError::Lagged(84)));
        assert_eq!(*slow.live.try_recv().unwrap(), [84]);
    }
}
