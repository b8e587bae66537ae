//! What a network device has done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Packets and bytes by direction as the guest sees it. Bytes are those of frames, without the virtio header.
#[derive(Debug, Default)]
pub struct Counters {
    /// Received by the guest.
    pub rx: Direction,
    /// Sent by the guest.
    pub tx: Direction,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// A frame of so many bytes went through.
    pub fn passed(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A packet was thrown away.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// All of them, by name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        [
            ("rx_packets", &self.rx.packets),
            ("rx_bytes", &self.rx.bytes),
            ("rx_dropped", &self.rx.dropped),
            ("tx_packets", &self.tx.packets),
            ("tx_bytes", &self.tx.bytes),
            ("tx_dropped", &self.tx.dropped),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .into()
    }
}
