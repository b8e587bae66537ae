//! A started device, and a guest that means harm.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH};
use super::test_guest::{CID, Guest};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::devices::virtio::test_driver::TestQueue;

#[test]
fn more_than_was_allowed_ends_the_connection() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    // Nobody reads, so what the host's socket does not take must wait in the device, which has a limit.
    let data = [1; 32 * 1024];
    let reset = loop {
        guest.send(Op::Rw, port, 1, &data);
        if let Some((packet, _)) = guest.poll()
            && packet.op != Op::CreditUpdate as u16
        {
            break packet;
        }
        assert!(guest.counter("bytes_to_host") < 10_000_000);
    };
    assert_eq!(reset.op, Op::Rst as u16);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got.len() < 1_000_000);
    assert!(!guest.transport.faulted());
}

#[test]
fn packets_that_belong_nowhere_are_answered_by_a_reset() {
    let mut guest = Guest::new();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(op, 5, 6, b"data");
        let (reset, _) = guest.expect(Op::Rst);
        assert_eq!((reset.src_port, reset.dst_port), (5, 6));
    }
    guest.send(Op::Rst, 5, 6, &[]);
    guest.expect_silence();
}

#[test]
fn unknown_operations_types_and_hosts_are_answered_by_a_reset() {
    let mut guest = Guest::new();
    let good = Guest::header(Op::Request, 5, 6);
    for header in [
        Header { op: 0, ..good },
        Header { op: 8, ..good },
        Header { op: 0xffff, ..good },
        Header { kind: 0, ..good },
        Header { kind: 2, ..good },
        Header { dst_cid: 1, ..good },
        Header {
            dst_cid: HOST_CID | 1 << 32,
            ..good
        },
    ] {
        guest.send_packet(header, &[]);
        let (reset, _) = guest.expect(Op::Rst);
        assert_eq!((reset.src_cid, reset.kind), (header.dst_cid, header.kind));
    }
    // Somebody else's name is not answered at all.
    for src_cid in [0, 2, CID + 1, CID | 1 << 32, u64::MAX] {
        guest.send_packet(Header { src_cid, ..good }, &[]);
    }
    guest.expect_silence();
    assert_eq!(guest.counter("dropped"), 5);
}

#[test]
fn an_unknown_operation_ends_a_connection() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    let header = Guest::header(Op::Rw, port, 1);
    guest.send_packet(Header { op: 99, ..header }, &[]);
    guest.expect(Op::Rst);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // A packet of another type does not touch it.
    let (mut stream, port) = guest.connected(1);
    let header = Guest::header(Op::Rst, port, 1);
    guest.send_packet(Header { kind: 2, ..header }, &[]);
    guest.send(Op::Rw, port, 1, b"x");
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn data_before_or_behind_its_time_ends_the_connection() {
    let mut guest = Guest::new();
    let _stream = guest.call("CONNECT 1\n");
    let (request, _) = guest.expect(Op::Request);
    guest.send(Op::Rw, request.src_port, 1, b"x");
    guest.expect(Op::Rst);

    let (_stream, port) = guest.connected(1);
    guest.shut_down(port, 1, 2);
    guest.send(Op::Rw, port, 1, b"x");
    guest.expect(Op::Rst);
}

#[test]
fn broken_packets_ask_for_a_reset_and_close_everything() {
    let short = |guest: &mut Guest| {
        guest.tx.add(&[(0x1000, 43, false)]).unwrap();
    };
    let writable = |guest: &mut Guest| {
        guest.tx.add(&[(0x1000, 44, true)]).unwrap();
    };
    let outside = |guest: &mut Guest| {
        guest.tx.add(&[(0x80_0000 - 22, 44, false)]).unwrap();
    };
    let too_long = |guest: &mut Guest| {
        let header = Guest::header(Op::Rw, 1, 1);
        guest.send_raw(Header { len: 5, ..header }, b"four");
    };
    let endless = |guest: &mut Guest| {
        let header = Guest::header(Op::Rw, 1, 1);
        let len = u32::MAX;
        guest.send_raw(Header { len, ..header }, b"four");
    };
    for harm in [short, writable, outside, too_long, endless] {
        let mut guest = Guest::new();
        let (mut stream, _) = guest.connected(1);
        harm(&mut guest);
        guest.tx.kick();
        guest.transport.expect_fault();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed");
    }
}

#[test]
fn buffers_without_room_ask_for_a_reset() {
    for len in [43, 44] {
        let mut guest = Guest::without_buffers();
        guest.give_buffer(0x10_0000, len);
        guest.rx.kick();
        let _stream = guest.call("CONNECT 1\n");
        guest.transport.expect_fault();
    }
}

#[test]
fn a_header_may_share_a_buffer_with_its_data() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    let header = Header {
        len: 4,
        ..Guest::header(Op::Rw, port, 1)
    };
    let bytes = [header.to_bytes().as_slice(), b"datarest"].concat();
    let at = 0x20_0000;
    use vm_memory::{Bytes, GuestAddress};
    guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    // Split where it does not matter; what the header does not speak of is ignored.
    guest
        .tx
        .add(&[(at, 10, false), (at + 10, bytes.len() as u32 - 10, false)])
        .unwrap();
    guest.tx.kick();
    guest.send(Op::Rw, port, 1, b"!");
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"data!");
}

#[test]
fn thousands_of_requests_without_taking_an_answer_grow_nothing() {
    let mut guest = Guest::without_buffers();
    for port in 0..6000 {
        guest.send(Op::Request, 5, port, &[]);
    }
    while guest.tx.used_index() < 6000 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(guest.counter("dropped"), 6000 - 4096);
    guest.give_buffers(200);
    for port in 0..4096 {
        assert_eq!(guest.expect(Op::Rst).0.dst_port, port);
    }
    guest.connected(1);
}

#[test]
fn a_guest_that_takes_nothing_costs_nothing() {
    let mut guest = Guest::without_buffers();
    guest.give_buffer(0x10_0000, 4096);
    guest.rx.kick();
    let mut stream = guest.call("CONNECT 1\n");
    stream.set_nonblocking(true).unwrap();
    // Without a buffer of the guest's the program's data stays where it is.
    while stream.write(&[0; 4096]).is_ok() {}
    let listener = UnixListener::bind(guest.path("_7")).unwrap();
    guest.send(Op::Request, 7, 7, &[]);
    let (mut other, _) = listener.accept().unwrap();
    other.write_all(b"unheard").unwrap();
    std::thread::sleep(Duration::from_millis(50));

    let before = guest.counter("rounds");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.counter("rounds"), before, "it slept");
    assert!(!guest.transport.faulted());
}

#[test]
fn a_reset_closes_everything_and_the_socket_serves_again() {
    let mut guest = Guest::new();
    let (mut stream, _) = guest.connected(1);
    guest.vsock.stop();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // Who calls meanwhile waits.
    let _waiting = guest.call("CONNECT 2\n");
    let (rx, tx) = (guest.rx.layout, guest.tx.layout);
    let queue = |at, size| TestQueue::new(&guest.memory, at, size, true);
    let (rx, tx) = (
        queue(rx.descriptors.0, rx.size),
        queue(tx.descriptors.0, tx.size),
    );
    for ring in [&rx, &tx] {
        use vm_memory::Bytes;
        let len = ring.layout.device.0 + 6 + 8 * 256 - ring.layout.descriptors.0;
        let zeros = vec![0; len as usize];
        guest
            .memory
            .write_slice(&zeros, ring.layout.descriptors)
            .unwrap();
    }
    guest.rx = rx;
    guest.tx = tx;
    guest.start();
    guest.give_buffers(100);
    let (request, _) = guest.expect(Op::Request);
    assert_eq!(request.dst_port, 2);
    guest.connected(3);
}

#[test]
fn the_socket_is_its_user_s_alone_and_goes_with_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let vsock = Vsock::new(3, path.clone()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(*vsock.config(), 3u64.to_le_bytes());
    let taken = Vsock::new(3, path.clone()).unwrap_err();
    assert!(matches!(taken, CreateError::Exists { .. }), "{taken}");
    drop(vsock);
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let error = Vsock::new(cid, "/nowhere".into()).unwrap_err();
        assert!(matches!(error, CreateError::Cid(_)), "{error}");
    }
    let error = Vsock::new(3, format!("/{}", "x".repeat(96)).into()).unwrap_err();
    assert!(matches!(error, CreateError::PathTooLong(_)), "{error}");
    let error = Vsock::new(3, "/nowhere/at/all".into()).unwrap_err();
    assert!(matches!(error, CreateError::Listen { .. }), "{error}");
}

#[test]
fn a_table_has_an_end() {
    // Each connection takes two descriptors here.
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call fills in a whole `rlimit`.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads an `rlimit`.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if (got, set) != (0, 0) || limit.rlim_cur < 10_000 {
        println!("skipped: {} descriptors are too few", limit.rlim_cur);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut table = Table::new(CID, dir.path().join("v"), Arc::default());
    let mut keep = Vec::new();
    for i in 0..4097 {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let key = table.connect_to_guest(ours, 1);
        assert_eq!(key.is_some(), i < 4096, "{i}");
        keep.push((key, theirs));
    }
    // One that ends makes room for one.
    let gone = keep[7].0.unwrap();
    table.give_up(gone);
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(table.connect_to_guest(ours, 1).is_some());
}

#[test]
fn an_orderly_end_is_answered() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    guest.shut_down(port, 1, SHUTDOWN_BOTH | 0xffff_fff0);
    guest.expect(Op::Rst);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
