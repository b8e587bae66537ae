//! Much data through a started device, and the credit of both sides.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use super::packet::{Header, Op, SHUTDOWN_SEND};
use super::test_guest::{Guest, TX_MAX, noise, read_all};

#[test]
fn ten_megabytes_each_way_at_once_are_equal_to_the_byte() {
    const LEN: usize = 10_000_000;
    let mut guest = Guest::new();
    let (stream, port) = guest.connected(1);
    let (to_guest, to_host) = (noise(LEN, 1), noise(LEN, 2));
    let writer = std::thread::spawn({
        let (mut stream, data) = (stream.try_clone().unwrap(), to_guest.clone());
        move || {
            stream.write_all(&data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let reader = std::thread::spawn({
        let mut stream = stream;
        move || read_all(&mut stream)
    });

    // A guest that can hold little, and says so late.
    const HOLD: u32 = 50_000;
    let mut got = Vec::new();
    let mut told = 0;
    let (mut at, mut forwarded, mut alloc) = (0usize, 0u32, 0u32);
    let mut ended = false;
    let header = |op, got: usize| Header {
        buf_alloc: HOLD,
        fwd_cnt: got as u32,
        ..Guest::header(op, port, 1)
    };
    guest.send_packet(header(Op::CreditUpdate, 0), &[]);
    guest.send_packet(header(Op::CreditRequest, 0), &[]);
    while !ended || at < LEN {
        // Without waiting when there is something to send.
        let credit = (alloc as usize).saturating_sub(at - forwarded as usize);
        let len = credit.min(LEN - at).min(TX_MAX as usize - 0x1000);
        let packet = if len > 0 {
            guest.poll()
        } else {
            Some(guest.receive())
        };
        if len > 0 {
            guest.send_packet(header(Op::Rw, got.len()), &to_host[at..at + len]);
            told = got.len();
            at += len;
            if at == LEN {
                guest.shut_down(port, 1, SHUTDOWN_SEND);
            }
        }
        let Some((packet, data)) = packet else {
            continue;
        };
        (alloc, forwarded) = (packet.buf_alloc, packet.fwd_cnt);
        got.extend(data);
        assert!(got.len() - told <= (1 << 20) + HOLD as usize);
        match Op::from_number(packet.op) {
            Some(Op::Rw | Op::CreditUpdate) => {
                if got.len() - told > HOLD as usize / 2 {
                    guest.send_packet(header(Op::CreditUpdate, got.len()), &[]);
                    told = got.len();
                }
            }
            Some(Op::CreditRequest) => {
                guest.send_packet(header(Op::CreditUpdate, got.len()), &[]);
                told = got.len();
            }
            Some(Op::Shutdown) => ended = packet.flags & SHUTDOWN_SEND != 0,
            _ => panic!("{packet:?}"),
        }
    }
    writer.join().unwrap();
    let differs = got.iter().zip(&to_guest).position(|(a, b)| a != b);
    assert_eq!((differs, got.len()), (None, LEN), "what the guest got");
    assert!(
        reader.join().unwrap() == to_host,
        "the host got something else"
    );
    assert_eq!(guest.counter("bytes_to_guest"), LEN as u64);
    assert_eq!(guest.counter("bytes_to_host"), LEN as u64);
}

#[test]
fn the_guest_s_credit_is_kept() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    let header = Header {
        buf_alloc: 10_000,
        ..Guest::header(Op::CreditUpdate, port, 1)
    };
    guest.send_packet(header, &[]);
    guest.expect_silence();
    stream.write_all(&noise(25_000, 3)).unwrap();
    let mut got = 0;
    // Up to the credit, and then one question.
    loop {
        let (packet, data) = guest.receive();
        got += data.len();
        if packet.op == Op::CreditRequest as u16 {
            break;
        }
        assert_eq!(packet.op, Op::Rw as u16);
    }
    assert_eq!(got, 10_000);
    guest.expect_silence();
    guest.send_packet(
        Header {
            fwd_cnt: 10_000,
            ..header
        },
        &[],
    );
    while got < 20_000 {
        got += guest.expect(Op::Rw).1.len();
    }
    assert_eq!(got, 20_000);
    guest.expect(Op::CreditRequest);
    // Less than what is under way: no credit, and no harm.
    let shrunk = Header {
        buf_alloc: 5,
        fwd_cnt: 10_000,
        ..header
    };
    guest.send_packet(shrunk, &[]);
    guest.expect_silence();
}

#[test]
fn a_program_that_reads_wakes_nobody() {
    let mut guest = Guest::new();
    let (mut stream, port) = guest.connected(1);
    for _ in 0..3 {
        guest.send(Op::Rw, port, 1, &[7; 1000]);
    }
    let mut got = [0; 3000];
    stream.read_exact(&mut got[..1000]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let before = guest.counter("rounds");
    stream.read_exact(&mut got[..2000]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.counter("rounds"), before);
}
