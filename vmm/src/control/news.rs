//! What happens to a VM, told to whoever listens.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use super::Resize;
use crate::pci::DeviceNumber;
use crate::vm::Outcome;

/// Something that happened to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The guest begins to boot.
    Booted,
    /// The vCPUs stand still.
    Paused,
    /// They go on.
    Resumed,
    /// The power button was pressed.
    PowerButton,
    /// The guest was reset.
    Reset,
    /// The guest was given another device.
    DeviceAdded(DeviceNumber),
    /// The guest has let go of a device.
    DeviceRemoved(DeviceNumber),
    /// The VM is to have another size.
    Resized(Resize),
    /// The VM has ended.
    Ended(Outcome),
}

/// Something that happened, and when.
#[derive(Clone, Debug)]
pub struct Event {
    /// In milliseconds since 1970 (UTC).
    pub unix_ms: u64,
    /// What.
    pub what: Happening,
}

/// As many events wait for a listener as this. One that is slower misses some.
const BACKLOG: usize = 32;

/// Where events are told. They are kept for nobody but those who listen.
#[derive(Clone, Debug)]
pub struct News(broadcast::Sender<Event>);

impl Default for News {
    fn default() -> Self {
        News(broadcast::Sender::new(BACKLOG))
    }
}

impl News {
    /// Tells those who listen, and waits for none of them.
    pub fn tell(&self, what: Happening) {
        let unix_ms = News::now();
        // That nobody listens is no error.
        let _ = self.0.send(Event { unix_ms, what });
    }

    /// The time of an event that happens now.
    pub fn now() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_millis() as u64)
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
