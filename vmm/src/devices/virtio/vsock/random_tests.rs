//! A guest and programs that do anything at any time. The device must neither end nor grow.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::packet::{Header, Op};
use super::test_guest::Guest;
use crate::devices::virtio::Device;
use crate::devices::virtio::test_driver::Random;

#[test]
fn anything_at_any_time() {
    let mut done: HashMap<&str, u64> = HashMap::new();
    for seed in 0..4 {
        for (name, count) in round(seed) {
            *done.entry(name).or_default() += count;
        }
    }
    // All of it was tried, or this tests nothing.
    for (name, count) in done {
        assert!(count > 10 || name == "dropped", "{name}: {count}");
    }
}

fn round(seed: u64) -> Vec<(&'static str, u64)> {
    let mut random = Random::new(seed);
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.path("_3")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut streams: Vec<UnixStream> = Vec::new();
    // The host's and the guest's ports of connections, old ones among them.
    let mut ports = VecDeque::from([(3, 0), (3, 1), (3, 2)]);
    for _ in 0..5000 {
        match random.below(10) {
            0 => {
                let line = match random.below(4) {
                    0 => "CONNECT".into(),
                    1 => "nonsense\n".into(),
                    _ => format!("CONNECT {}\n", random.below(4)),
                };
                if streams.len() < 50 {
                    streams.push(guest.call(&line));
                }
            }
            1 => {
                while let Ok((stream, _)) = listener.accept() {
                    streams.push(stream);
                }
            }
            2 | 3 if !streams.is_empty() => {
                let index = random.below(streams.len() as u64) as usize;
                something(&mut random, &mut streams, index);
            }
            4 => {
                while let Some((header, _)) = guest.poll() {
                    let pair = (header.src_port, header.dst_port);
                    if !ports.contains(&pair) {
                        ports.push_back(pair);
                    }
                    if ports.len() > 10 {
                        let old = ports.remove(3);
                        assert!(old.is_some());
                    }
                    if header.op == Op::Request as u16 && !random.one_in(4) {
                        guest.send(Op::Response, pair.0, pair.1, &[]);
                    }
                }
            }
            _ => {
                let (header, data) = packet(&mut random, &ports);
                guest.send_packet(header, &data);
            }
        }
    }
    // All of it was well made, so there was no reason to give up; and it is alive.
    assert!(!guest.transport.faulted());
    while guest.poll().is_some() {}
    let worker = guest.vsock.worker.take().unwrap();
    assert!(worker.stop().is_some(), "it has panicked");
    drop(streams);
    guest.vsock.counters()
}

fn packet(random: &mut Random, ports: &VecDeque<(u32, u32)>) -> (Header, Vec<u8>) {
    let ops = [
        Op::Request,
        Op::Request,
        Op::Response,
        Op::Rst,
        Op::Shutdown,
        Op::Rw,
        Op::Rw,
        Op::Rw,
        Op::Rw,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
    ];
    let op = ops[random.below(ops.len() as u64) as usize];
    let (host, guest) = ports[random.below(ports.len() as u64) as usize];
    let header = Header {
        flags: random.below(5) as u32,
        buf_alloc: match random.below(4) {
            0 => random.next() as u32,
            1 => 0,
            _ => 1 << 20,
        },
        fwd_cnt: if random.one_in(2) {
            0
        } else {
            random.next() as u32
        },
        ..Guest::header(op, host, guest)
    };
    let len = match (op, random.below(8)) {
        (Op::Rw, 0) => 0,
        (Op::Rw, 1) => 60_000,
        (Op::Rw, _) => random.below(2000),
        (_, 0) => 5,
        _ => 0,
    };
    (header, vec![0x5a; len as usize])
}

/// A program does something with one of its sockets.
fn something(random: &mut Random, streams: &mut Vec<UnixStream>, index: usize) {
    let stream = &mut streams[index];
    stream.set_nonblocking(true).unwrap();
    match random.below(8) {
        0 => drop(streams.swap_remove(index)),
        1 => drop(stream.shutdown(Shutdown::Write)),
        2 => drop(stream.shutdown(Shutdown::Read)),
        3..5 => drop(stream.write(&vec![0xa5; random.below(100_000) as usize])),
        _ => drop(stream.read(&mut [0; 50_000])),
    }
}
