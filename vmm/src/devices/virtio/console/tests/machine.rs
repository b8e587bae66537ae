//! A console with a driver at one end and a file or a pipe at the other.

use std::fs::File;
use std::io::{PipeReader, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use crate::devices::console::output::{Dropped, Output, Writer};
use crate::devices::virtio::console::{F_SIZE, Hvc, Line, QUEUE_SIZES};
use crate::devices::virtio::test_driver::{PATIENCE, TestQueue, TestTransport, ram};
use crate::devices::virtio::{Device as _, F_RING_EVENT_IDX, GuestMemory};

/// RAM, and where in it buffers are.
pub const RAM: u64 = 16 << 20;
pub const DATA: u64 = 1 << 20;

/// What a driver takes that has no event-idx, and one that has.
pub const BOTH: [u64; 2] = [F_SIZE, F_SIZE | F_RING_EVENT_IDX];

pub struct Machine {
    pub hvc: Hvc,
    pub line: Line,
    pub input: TestQueue,
    pub output: TestQueue,
    pub transport: TestTransport,
    memory: Arc<GuestMemory>,
    features: u64,
    /// Where output goes.
    shown: PathBuf,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// Whose output goes to a file.
    pub fn new(features: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shown = directory.path().join("shown");
        let file = File::create(&shown).unwrap();
        Machine::with(features, file, shown, directory)
    }

    /// Whose output goes to a pipe.
    pub fn piped(features: u64) -> (Self, PipeReader) {
        let directory = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let machine = Machine::with(features, writer, PathBuf::new(), directory);
        (machine, reader)
    }

    fn with(
        features: u64,
        sink: impl std::io::Write + Send + 'static,
        shown: PathBuf,
        directory: tempfile::TempDir,
    ) -> Self {
        let (output, _writer) = Writer::start(sink, Arc::default(), Dropped::default()).unwrap();
        let line = Line::new(Output::clone(&output)).unwrap();
        let memory = ram(RAM as usize);
        let mut machine = Machine {
            hvc: Hvc::new(line.clone()),
            line,
            input: TestQueue::new(&memory, 0x1000, QUEUE_SIZES[0], false),
            output: TestQueue::new(&memory, 0x4000, QUEUE_SIZES[1], false),
            transport: TestTransport::new(),
            memory,
            features,
            shown,
            _directory: directory,
        };
        machine.start();
        machine
    }

    /// As a driver does that finds the device reset.
    pub fn start(&mut self) {
        let event_idx = self.features & F_RING_EVENT_IDX != 0;
        let zeros = [0; 0x6000];
        self.memory
            .write_slice(&zeros, GuestAddress(0x1000))
            .unwrap();
        self.input = TestQueue::new(&self.memory, 0x1000, QUEUE_SIZES[0], event_idx);
        self.output = TestQueue::new(&self.memory, 0x4000, QUEUE_SIZES[1], event_idx);
        self.transport = TestTransport::new();
        let active = self
            .transport
            .active(self.features, &[&self.input, &self.output]);
        self.hvc.start(active).unwrap();
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// The guest writes.
    pub fn says(&mut self, bytes: &[u8]) {
        self.put(DATA, bytes);
        let head = self.output.add(&[(DATA, bytes.len() as u32, false)]);
        self.output.kick();
        assert_eq!(self.output.wait_used(), (head.unwrap(), 0));
    }

    /// The guest reads, with room for `len`.
    pub fn hears(&mut self, len: u32) -> Vec<u8> {
        let head = self.input.add(&[(DATA, len, true)]).unwrap();
        self.input.kick();
        let (used, written) = self.input.wait_used();
        assert_eq!(used, head);
        self.get(DATA, written as usize)
    }

    /// Waits until the file ends with `text`.
    pub fn shows(&self, text: &[u8]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = std::fs::read(&self.shown).unwrap();
            if shown.ends_with(text) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{:?}",
                String::from_utf8_lossy(&shown)
            );
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.hvc.counters();
        counters.iter().find(|(its, _)| *its == name).unwrap().1
    }

    /// Both ways, on a device that is to work; with a file.
    pub fn works(&mut self) {
        assert!(!self.transport.faulted());
        // What nobody has heard yet goes first.
        while !self.line.is_silent() {
            self.hears(4096);
        }
        self.says(b"[works]");
        self.shows(b"[works]");
        assert!(self.line.feed(b"typed").is_empty());
        assert_eq!(self.hears(64), b"typed");
    }
}

/// Reads to the end of what is there when `done` says so.
pub fn read_until(reader: &mut PipeReader, mut done: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut all = Vec::new();
    while !done(&all) {
        let mut block = [0; 8192];
        let count = reader.read(&mut block).unwrap();
        all.write_all(&block[..count]).unwrap();
    }
    all
}
