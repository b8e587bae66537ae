//! A started device between a guest and programs on the host.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::packet::{HOST_CID, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::test_guest::{Guest, noise, read_all};

use socket2::{Domain, SockAddr, Socket, Type};

use super::*;
use crate::devices::virtio::test_driver::PATIENCE;

#[test]
fn a_program_on_the_host_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1024);
    assert!(port >= 1 << 30);

    stream.write_all(b"to the guest").unwrap();
    let (header, data) = guest.expect(Op::Rw);
    assert_eq!(data, b"to the guest");
    assert_eq!(
        (
            header.src_cid,
            header.src_port,
            header.dst_port,
            header.kind
        ),
        (HOST_CID, port, 1024, TYPE_STREAM)
    );
    assert!(header.buf_alloc >= 64 * 1024);

    guest.send(Op::Rw, port, 1024, b"to the host");
    let mut text = [0; 11];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"to the host");

    // Two connections at once are two connections.
    let (mut other, other_port) = guest.connected(1024);
    assert_ne!(port, other_port);
    guest.send(Op::Rw, other_port, 1024, b"hello other");
    other.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello other");
    assert_eq!(guest.counter("connections_to_guest"), 2);
}

#[test]
fn bytes_behind_the_greeting_are_the_guest_s() {
    let mut guest = Guest::new();
    let mut stream = guest.call("CONNECT 5\nearly");
    let (request, _) = guest.expect(Op::Request);
    guest.expect_silence();
    guest.send(Op::Response, request.src_port, 5, &[]);
    assert_eq!(guest.expect(Op::Rw).1, b"early");
    let mut line = [0; 3];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK ");
}

#[test]
fn a_port_where_nobody_listens_ends_the_connection() {
    let mut guest = Guest::new();
    let mut stream = guest.call("CONNECT 77\n");
    let (request, _) = guest.expect(Op::Request);
    guest.send(Op::Rst, request.src_port, 77, &[]);
    assert_eq!(read_all(&mut stream), b"");
    guest.expect_silence();
}

#[test]
fn a_caller_that_gives_up_takes_its_request_back() {
    let mut guest = Guest::new();
    let stream = guest.call("CONNECT 77\n");
    let (request, _) = guest.expect(Op::Request);
    drop(stream);
    let (reset, _) = guest.expect(Op::Rst);
    assert_eq!(reset.src_port, request.src_port);
}

#[test]
fn callers_that_make_no_sense_are_sent_away() {
    let mut guest = Guest::new();
    for line in [
        "hello\n",
        "CONNECT x\n",
        "CONNECT 4294967295\n",
        &"C".repeat(100),
    ] {
        let mut stream = guest.call(line);
        // Bytes that nobody read turn the end into an error.
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
    let _silent = guest.call("");
    guest.connected(1);
}

#[test]
fn a_program_in_the_guest_reaches_a_socket_of_the_host() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.path("_1024")).unwrap();
    guest.send(Op::Request, 1024, 9, &[]);
    let (response, _) = guest.expect(Op::Response);
    assert_eq!((response.src_port, response.dst_port), (1024, 9));
    let (mut stream, _) = listener.accept().unwrap();
    guest.send(Op::Rw, 1024, 9, b"ready");
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
    stream.write_all(&text).unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"ready");

    // The same again is a breach, and ends it.
    guest.send(Op::Request, 1024, 9, &[]);
    guest.expect(Op::Rst);
    assert_eq!(read_all(&mut stream), b"");
    assert_eq!(guest.counter("connections_to_host"), 1);
}

#[test]
fn a_socket_of_the_host_that_is_not_there_is_refused() {
    let mut guest = Guest::new();
    for port in [1, 1024, u32::MAX] {
        guest.send(Op::Request, port, 9, &[]);
        assert_eq!(guest.expect(Op::Rst).0.src_port, port);
    }
    // A file that is no socket, and a socket where nobody accepts any more.
    std::fs::write(guest.path("_2"), b"").unwrap();
    drop(UnixListener::bind(guest.path("_3")).unwrap());
    for port in [2, 3] {
        guest.send(Op::Request, port, 9, &[]);
        assert_eq!(guest.expect(Op::Rst).0.src_port, port);
    }
}

#[test]
fn a_listener_that_does_not_accept_blocks_nobody() {
    let mut guest = Guest::new();
    let _listener = {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let path = guest.path("_4");
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(1).unwrap();
        socket
    };
    let mut refused = 0;
    for port in 0..8 {
        guest.send(Op::Request, 4, port, &[]);
        refused += u32::from(guest.receive().0.op == Op::Rst as u16);
    }
    assert!(refused > 0, "its queue is full");
    guest.connected(1);
}

#[test]
fn the_guest_ends_its_direction_and_then_the_host_does() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    guest.send(Op::Rw, port, 1, b"last words");
    guest.shut_down(port, 1, SHUTDOWN_SEND);
    assert_eq!(read_all(&mut stream), b"last words");
    stream.write_all(b"and mine").unwrap();
    drop(stream);
    assert_eq!(guest.expect(Op::Rw).1, b"and mine");
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        flags = guest.expect(Op::Shutdown).0.flags;
    }
    guest.send(Op::Rst, port, 1, &[]);
    guest.expect_silence();
}

#[test]
fn the_host_ends_its_direction_and_then_the_guest_does() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"question");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_SEND);
    guest.expect_silence();
    guest.send(Op::Rw, port, 1, b"answer");
    guest.shut_down(port, 1, SHUTDOWN_BOTH);
    guest.expect(Op::Rst);
    assert_eq!(read_all(&mut stream), b"answer");
}

#[test]
fn a_guest_that_receives_no_more_is_sent_no_more() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    guest.shut_down(port, 1, SHUTDOWN_RECEIVE);
    // The program's writes fail, once the guest's word has arrived.
    let end = Instant::now() + PATIENCE;
    let error = loop {
        match stream.write_all(b"x") {
            Err(error) => break error,
            Ok(()) => assert!(Instant::now() < end),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    while guest.poll().is_some() {}
    guest.send(Op::Rw, port, 1, b"still here");
    let mut text = [0; 10];
    stream.read_exact(&mut text).unwrap();
    guest.shut_down(port, 1, SHUTDOWN_SEND);
    guest.expect(Op::Rst);
    assert_eq!(read_all(&mut stream), b"");
}

#[test]
fn a_program_that_dies_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let (stream, port) = guest.connected(1);
    // Something is on its way to it that it never reads.
    guest.send(Op::Rw, port, 1, b"unread");
    drop(stream);
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        flags = guest.expect(Op::Shutdown).0.flags;
    }
    // What is under way meanwhile is swallowed.
    guest.send(Op::Rw, port, 1, b"more");
    guest.expect_silence();
    guest.shut_down(port, 1, SHUTDOWN_BOTH);
    guest.expect(Op::Rst);
}

#[test]
fn what_was_sent_before_an_orderly_end_outlives_the_guest_s_patience() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    // More than the host's socket holds, so that some waits in the device.
    let sent = noise(400_000, 7);
    let mut at = 0;
    let mut forwarded = 0;
    while at < sent.len() {
        let (alloc, chunk) = (256 * 1024, &sent[at..sent.len().min(at + 16_384)]);
        while at + chunk.len() > forwarded as usize + alloc {
            forwarded = guest.expect(Op::CreditUpdate).0.fwd_cnt;
        }
        guest.send(Op::Rw, port, 1, chunk);
        at += chunk.len();
    }
    guest.shut_down(port, 1, SHUTDOWN_BOTH);
    guest.send(Op::Rst, port, 1, &[]);
    // The name is not free yet.
    guest.send(Op::Rw, port, 1, b"intruder");
    guest.expect(Op::Rst);
    assert!(read_all(&mut stream) == sent, "not what was sent");
}

#[test]
fn a_reset_without_an_orderly_end_ends_at_once() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    guest.send(Op::Rst, port, 1, &[]);
    assert_eq!(read_all(&mut stream), b"");
    guest.expect_silence();
}
