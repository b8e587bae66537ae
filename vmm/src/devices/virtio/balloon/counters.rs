//! What a balloon has done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of ours, in contrast to those that the guest tells of itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// How many bytes the driver has said are in the balloon, less those that it has said are not any more.
    pub balloon: AtomicU64,
    /// How many bytes were given back to the host so far, by the balloon and by reports. Those that the guest has used again count as well.
    pub returned: AtomicU64,
    /// How often free pages were reported.
    pub reports: AtomicU64,
}

impl Counters {
    /// So many bytes came into the balloon.
    pub fn inflated(&self, bytes: u64) {
        self.balloon.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes left it. A driver may say so of more than there were.
    pub fn deflated(&self, bytes: u64) {
        let less = |now: u64| Some(now.saturating_sub(bytes));
        // It never fails, for there always is another value.
        let _ = self
            .balloon
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The balloon is another one.
    pub fn forget_balloon(&self) {
        self.balloon.store(0, Ordering::Relaxed);
    }
}
