//! virtio-rng (virtio 1.2, 5.4): random bytes from the host's kernel.
//!
//! One queue, whose buffers the device fills. The bytes come from `/dev/urandom`, straight into guest memory.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::ReadVolatile;

use super::queue::{self, Chain};
use super::worker::Worker;
use super::{
    Active, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, GuestMemory, Kind, StartError,
};

/// Where the bytes come from.
const SOURCE: &str = "/dev/urandom";
/// As many bytes as one request gets. A longer one is answered in part, as is allowed (5.4.6.2), so that one request cannot keep
/// the host's generator busy for long.
const REQUEST_MAX: usize = 64 * 1024;
/// The driver asks for little and seldom.
const QUEUE_SIZE: u16 = 64;

/// The device.
#[derive(Debug)]
pub struct Rng {
    source: Arc<File>,
    bytes: Arc<AtomicU64>,
    worker: Option<Worker<()>>,
}

/// The source of random bytes could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {SOURCE}, where virtio-rng gets its random bytes")]
pub struct OpenError(#[source] io::Error);

/// What ends the device until it is reset.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the request queue is broken")]
    Queue(#[from] queue::Error),
    #[error("cannot read {SOURCE}")]
    Source(#[source] io::Error),
}

impl Rng {
    /// A device that is idle.
    ///
    /// # Errors
    /// When the host's source of random bytes cannot be opened.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Rng {
            source: Arc::new(File::open(SOURCE).map_err(OpenError)?),
            bytes: Arc::new(AtomicU64::new(0)),
            worker: None,
        })
    }
}

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn features(&self) -> u64 {
        F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    fn start(&mut self, mut active: Active) -> Result<(), StartError> {
        self.stop();
        let queue = active.take_queue(0)?;
        let (source, bytes) = (self.source.clone(), self.bytes.clone());
        self.worker = Some(Worker::spawn("virtio-rng", move |events| {
            let memory = &active.memory;
            queue.work(memory, events, &active.fault, |chain| {
                let filled = fill(&source, memory, chain)?;
                bytes.fetch_add(u64::from(filled), Ordering::Relaxed);
                Ok::<_, Broken>(filled)
            });
        })?);
        Ok(())
    }

    fn stop(&mut self) {
        self.worker = None;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("bytes", self.bytes.load(Ordering::Relaxed))]
    }
}

/// Fills a chain's buffers; says with how much.
fn fill(source: &File, memory: &GuestMemory, chain: &Chain) -> Result<u32, Broken> {
    let mut filled = 0;
    let mut source = source;
    for mut slice in chain.writable_slices(memory, 0, REQUEST_MAX)? {
        source
            .read_exact_volatile(&mut slice)
            .map_err(|error| Broken::Source(io::Error::other(error)))?;
        filled += slice.len();
    }
    // At most REQUEST_MAX.
    Ok(filled as u32)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::test_driver::{TestQueue, TestTransport, ram};

    const DATA: u64 = 0x10000;

    fn started(event_idx: bool) -> (Rng, TestQueue, TestTransport) {
        let driver = TestQueue::new(&ram(0x40000), 0x1000, QUEUE_SIZE, event_idx);
        let transport = TestTransport::new();
        let mut rng = Rng::open().unwrap();
        rng.start(transport.active(rng.features(), &[&driver]))
            .unwrap();
        (rng, driver, transport)
    }

    #[test]
    fn buffers_are_filled() {
        let (mut rng, mut driver, transport) = started(true);
        for _ in 0..200 {
            let memory = driver.memory.clone();
            memory.write_slice(&[0; 128], GuestAddress(DATA)).unwrap();
            let head = driver
                .add(&[(DATA, 32, true), (DATA + 64, 32, true)])
                .unwrap();
            driver.kick();
            assert_eq!(driver.wait_used(), (head, 64));
            let mut bytes = [0; 128];
            memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
            assert_ne!(bytes[..32], [0; 32]);
            assert_eq!(bytes[32..64], [0; 32], "between the buffers");
            assert_ne!(bytes[64..96], [0; 32]);
            assert_eq!(bytes[96..], [0; 32], "behind the buffers");
        }
        assert_eq!(rng.counters(), [("bytes", 200 * 64)]);
        rng.stop();
        assert!(!transport.faulted());
    }

    #[test]
    fn a_long_request_is_answered_in_part() {
        let (_rng, mut driver, _transport) = started(false);
        let head = driver.add(&[(DATA, 0x20000, true)]).unwrap();
        driver.kick();
        assert_eq!(driver.wait_used(), (head, 0x10000));
    }

    #[test]
    fn a_request_without_room_gets_nothing() {
        let (_rng, mut driver, transport) = started(false);
        let head = driver.add(&[(DATA, 64, false)]).unwrap();
        driver.kick();
        assert_eq!(driver.wait_used(), (head, 0));
        assert!(!transport.faulted());
    }

    #[test]
    fn a_bad_chain_asks_for_a_reset_and_after_it_all_is_well() {
        let (mut rng, mut driver, transport) = started(false);
        driver.add(&[(1 << 40, 64, true)]).unwrap();
        driver.kick();
        transport.expect_fault();
        assert_eq!(driver.used_index(), 0);
        rng.stop();

        let mut driver = TestQueue::new(&ram(0x40000), 0x1000, QUEUE_SIZE, true);
        let transport = TestTransport::new();
        // Made available before the device started, and not kicked.
        let head = driver.add(&[(DATA, 8, true)]).unwrap();
        rng.start(transport.active(rng.features(), &[&driver]))
            .unwrap();
        assert_eq!(driver.wait_used(), (head, 8));
    }

    #[test]
    fn a_queue_that_is_missing_is_an_error() {
        let driver = TestQueue::new(&ram(0x10000), 0x1000, QUEUE_SIZE, false);
        let mut rng = Rng::open().unwrap();
        let mut active = TestTransport::new().active(0, &[&driver]);
        active.queues[0] = None;
        assert!(matches!(
            rng.start(active),
            Err(StartError::MissingQueue(0))
        ));
    }
}
