//! A guest for tests: a driver of the device's queues that speaks the protocol, rightly or wrongly.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::Vsock;
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::virtio::test_driver::{PATIENCE, TestQueue, TestTransport, ram, wait};
use crate::devices::virtio::{Device, GuestMemory};

pub const CID: u64 = 42;
/// What the guest says that it can hold, unless a test says otherwise.
pub const GUEST_ALLOC: u32 = 1 << 20;
/// The size of a buffer for what comes from the device, as Linux has it.
const RX_LEN: u32 = 4096;
const RX_AT: u64 = 0x10_0000;
const TX_AT: u64 = 0x40_0000;
/// As much as one packet to the device may carry.
pub const TX_MAX: u64 = 0x1_0000;
const TX_SLOTS: u64 = 16;

pub struct Guest {
    pub vsock: Vsock,
    pub transport: TestTransport,
    pub rx: TestQueue,
    pub tx: TestQueue,
    pub memory: Arc<GuestMemory>,
    pub dir: tempfile::TempDir,
    events: TestQueue,
    /// Where the buffer of each head is.
    rx_at: HashMap<u16, u64>,
    tx_next: u64,
    tx_out: u64,
}

impl Guest {
    /// A started device, and a guest that gives it as many buffers as it can.
    pub fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers(256);
        guest
    }

    pub fn without_buffers() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = ram(0x80_0000);
        let queue = |base, size| TestQueue::new(&memory, base, size, true);
        let (rx, tx, events) = (queue(0x1000, 256), queue(0x8000, 256), queue(0x1_0000, 16));
        let mut guest = Guest {
            vsock: Vsock::new(CID, dir.path().join("v")).unwrap(),
            transport: TestTransport::new(),
            rx,
            tx,
            memory: memory.clone(),
            dir,
            events,
            rx_at: HashMap::new(),
            tx_next: 0,
            tx_out: 0,
        };
        guest.start();
        guest
    }

    pub fn start(&mut self) {
        let queues = [&self.rx, &self.tx, &self.events];
        let active = self.transport.active(self.vsock.features(), &queues);
        self.vsock.start(active).unwrap();
    }

    pub fn give_buffers(&mut self, count: u64) {
        for i in 0..count {
            self.give_buffer(RX_AT + i * u64::from(RX_LEN), RX_LEN);
        }
        self.rx.kick();
    }

    pub fn give_buffer(&mut self, at: u64, len: u32) {
        let head = self.rx.add(&[(at, len, true)]).unwrap();
        self.rx_at.insert(head, at);
    }

    pub fn path(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("v{suffix}"))
    }

    /// A program on the host connects and says `line`.
    pub fn call(&self, line: &str) -> UnixStream {
        use std::io::Write;
        let mut stream = UnixStream::connect(self.path("")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// A connection from a program on the host to `port`, granted: its socket, and the host's port.
    pub fn connected(&mut self, port: u32) -> (UnixStream, u32) {
        let mut stream = self.call(&format!("CONNECT {port}\n"));
        let (request, _) = self.expect(Op::Request);
        assert_eq!(request.dst_port, port);
        self.send(Op::Response, request.src_port, port, &[]);
        let expected = format!("OK {}\n", request.src_port);
        let mut line = vec![0; expected.len()];
        std::io::Read::read_exact(&mut stream, &mut line).unwrap();
        assert_eq!(line, expected.as_bytes());
        (stream, request.src_port)
    }

    pub fn header(op: Op, host_port: u32, guest_port: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: GUEST_ALLOC,
            ..Header::default()
        }
    }

    pub fn send(&mut self, op: Op, host_port: u32, guest_port: u32, data: &[u8]) {
        self.send_packet(Self::header(op, host_port, guest_port), data);
    }

    pub fn shut_down(&mut self, host_port: u32, guest_port: u32, flags: u32) {
        let header = Self::header(Op::Shutdown, host_port, guest_port);
        self.send_packet(Header { flags, ..header }, &[]);
    }

    /// Sends a packet, its header and data in buffers of their own.
    pub fn send_packet(&mut self, header: Header, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.send_raw(Header { len, ..header }, data);
    }

    /// Sends a packet whose header may say another length than the data has.
    pub fn send_raw(&mut self, header: Header, data: &[u8]) {
        while self.tx_out == TX_SLOTS {
            self.tx.wait_used();
            self.tx_out -= 1;
        }
        let at = TX_AT + self.tx_next * 2 * TX_MAX;
        self.tx_next = (self.tx_next + 1) % TX_SLOTS;
        self.tx_out += 1;
        let bytes = header.to_bytes();
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        let mut buffers = vec![(at, HEADER_LEN as u32, false)];
        if !data.is_empty() {
            let data_at = at + 0x1000;
            self.memory
                .write_slice(data, GuestAddress(data_at))
                .unwrap();
            buffers.push((data_at, data.len() as u32, false));
        }
        self.tx.add(&buffers).unwrap();
        self.tx.kick();
    }

    /// The next packet, if there is one.
    pub fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, used) = self.rx.take_used()?;
        let at = self.rx_at.remove(&head).unwrap();
        let mut bytes = vec![0; used as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let data = bytes.split_off(HEADER_LEN);
        let field = |range: std::ops::Range<usize>| -> u64 {
            let mut value = [0; 8];
            value[..range.len()].copy_from_slice(&bytes[range]);
            u64::from_le_bytes(value)
        };
        let header = Header {
            src_cid: field(0..8),
            dst_cid: field(8..16),
            src_port: field(16..20) as u32,
            dst_port: field(20..24) as u32,
            len: field(24..28) as u32,
            kind: field(28..30) as u16,
            op: field(30..32) as u16,
            flags: field(32..36) as u32,
            buf_alloc: field(36..40) as u32,
            fwd_cnt: field(40..44) as u32,
        };
        assert_eq!(header.len as usize, data.len());
        assert_eq!(header.dst_cid, CID);
        self.give_buffer(at, RX_LEN);
        self.rx.kick();
        Some((header, data))
    }

    /// Waits for the next packet.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(Instant::now() < end, "no packet came");
            wait(&self.rx.interrupt, Duration::from_millis(100));
        }
    }

    /// Waits for the next packet that is no update of credit, which must be for `op`.
    pub fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        loop {
            let (header, data) = self.receive();
            if op == Op::CreditUpdate || header.op != Op::CreditUpdate as u16 {
                assert_eq!(header.op, op as u16, "{header:?}");
                return (header, data);
            }
        }
    }

    /// Nothing comes for a while.
    pub fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        let packet = self.poll();
        assert!(packet.is_none(), "{packet:?}");
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.vsock.counters();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// `len` bytes that do not repeat soon.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Everything up to the end.
pub fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    std::io::Read::read_to_end(stream, &mut all).unwrap();
    all
}
