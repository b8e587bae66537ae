//! vsock: streams between programs in a guest and on its host.

mod common;
mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use common::stage;
use guest::held::Held;
use guest::peer::{self, PORT, Stream, Vm, answer, exchange, give, take};
use guest::{Kernel, control, until};
use orlop_proto::vmm::v1::{DescribeRequest, KillRequest, ResetRequest};
use orlop_testbed::stories;

const MIB: u64 = 1 << 20;

fn counters(vm: &Vm) -> BTreeMap<String, u64> {
    let described = control(&vm.guest.path("control"), async |mut vm| {
        vm.describe(DescribeRequest {}).await
    });
    let mut devices = described.unwrap().devices.into_iter();
    let vsock = devices.find(|device| device.kind == "virtio-vsock");
    vsock.unwrap().counters.into_iter().collect()
}

fn end(vm: Vm) {
    // The answer may be lost with the VM.
    let _ = control(&vm.guest.path("control"), async |mut vm| {
        vm.kill(KillRequest {}).await
    });
    let ended = vm.running.wait(guest::LIMIT).unwrap();
    assert_eq!(ended.status, 137, "{}", ended.error());
    let error = ended.error();
    assert!(!error.contains("must reset"), "{error}");
}

/// What the VMM holds once it has served a client of its control socket, for that stays.
fn held(vm: &Vm) -> Held {
    counters(vm);
    Held::by_vmm(vm.running.id())
}

/// Waits until the VMM has as many descriptors as before: no stream of the guest's is left.
fn lets_go(vm: &Vm, before: &Held) {
    let end = Instant::now() + guest::LIMIT;
    while held(vm).descriptors != before.descriptors {
        let id = vm.running.id();
        let open = || {
            let entries = fs::read_dir(format!("/proc/{id}/fd")).unwrap();
            let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            targets.collect::<Vec<_>>()
        };
        assert!(Instant::now() < end, "{before:?}, and now {:?}", open());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Where programs of the host listen for the guest that calls `port`.
fn listen(vm: &Vm, port: u32) -> UnixListener {
    let path = vm.guest.path(&format!("vsock_{port}"));
    let _ = fs::remove_file(&path);
    UnixListener::bind(path).unwrap()
}

/// Waits for the guest to call.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + guest::LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                peer::patient(&stream).unwrap();
                return stream;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < end, "the guest does not call");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_thousand_streams_are_open_at_once() {
    let Some(stage) = stage() else { return };
    const TO_GUEST: usize = 700;
    const TO_HOST: usize = 500;
    const LEN: u64 = 20_000;
    let vm = Vm::start(Kernel::Own, "", &["--memory", "512M"]);
    let before = held(&vm);
    let begun = Instant::now();

    // All of them ask before the first has its answer.
    let asked: Vec<_> = (0..TO_GUEST)
        .map(|_| {
            let mut stream = UnixStream::connect(vm.guest.path("vsock")).unwrap();
            peer::patient(&stream).unwrap();
            writeln!(stream, "CONNECT {PORT}").unwrap();
            stream
        })
        .collect();
    let mut streams: Vec<_> = asked
        .into_iter()
        .map(|stream| peer::greeted(stream).unwrap())
        .collect();
    let listener = listen(&vm, 7000);
    let called = vm.say(&format!("call 7000 {TO_HOST}"));
    streams.extend((0..TO_HOST).map(|_| accept(&listener)));
    answer(called).unwrap();
    println!("open after {:.1?}", begun.elapsed());

    // Each has bytes of its own, on their way at the same time.
    for (seed, stream) in (0..).zip(&mut streams) {
        writeln!(stream, "echo").unwrap();
        give(&*stream, seed, LEN).unwrap();
    }
    let all = held(&vm);
    let grown = all.descriptors - before.descriptors;
    assert_eq!(grown, TO_GUEST + TO_HOST);
    for (seed, stream) in (0..).zip(&mut streams) {
        take(&*stream, seed, LEN).unwrap_or_else(|error| panic!("stream {seed}: {error}"));
    }
    println!("passed after {:.1?}", begun.elapsed());
    for mut stream in streams {
        stream.end().unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the guest's end");
    }
    drop(listener);
    lets_go(&vm, &before);
    println!("{before:?} {all:?} {:?}", held(&vm));
    end(vm);
    stage.leaves_nothing();
}

#[test]
fn many_bytes_pass_both_ways_through_one_stream() {
    let Some(stage) = stage() else { return };
    let len = stories::size(32 * MIB, 1024 * MIB);
    let vm = Vm::start(Kernel::Own, "", &[]);
    for (what, line) in [
        ("to the guest", "take 1"),
        ("to the host", "give 2"),
        ("both ways at once", "both 3"),
    ] {
        let begun = Instant::now();
        let stream = vm.say(&format!("{line} {len}"));
        match line {
            "take 1" => {
                give(&stream, 1, len).unwrap();
                stream.end().unwrap();
                answer(stream).unwrap();
            }
            "give 2" => take(&stream, 2, len).unwrap(),
            _ => exchange(stream, 3, len).unwrap(),
        }
        let took = begun.elapsed();
        println!("{} MiB {what} in {took:.1?}", len / MIB);
    }
    let counters = counters(&vm);
    println!("{counters:?}");
    assert!(counters["bytes_to_guest"] >= 2 * len);
    assert!(counters["bytes_to_host"] >= 2 * len);
    end(vm);
    stage.leaves_nothing();
}

/// Sends until nothing more is taken for a while; says how much was.
fn fill(stream: &UnixStream, seed: u64) -> u64 {
    use orlop_guest_images::noise::Noise;
    stream.set_nonblocking(true).unwrap();
    let (mut at, mut since) = (0, Instant::now());
    let mut buffer = vec![0; 16 << 10];
    while since.elapsed() < Duration::from_secs(3) {
        Noise::new(seed).fill(at, &mut buffer);
        match (&*stream).write(&buffer) {
            Ok(count) => (at, since) = (at + count as u64, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    at
}

#[test]
fn a_reader_that_stops_holds_up_nobody_else() {
    let Some(stage) = stage() else { return };
    const LEN: u64 = 8 * MIB;
    let vm = Vm::start(Kernel::Own, "", &[]);
    // In the guest nobody reads these, and on the host nobody reads those.
    let still: Vec<_> = (0..3).map(|_| vm.say(&format!("stall 5 {LEN}"))).collect();
    let unread: Vec<_> = (0..3).map(|_| vm.say(&format!("give 6 {LEN}"))).collect();
    let filled: Vec<_> = still.iter().map(|stream| fill(stream, 5)).collect();
    println!("taken before they stood still: {filled:?}");
    assert!(filled.iter().all(|at| *at > 0 && *at < LEN), "{filled:?}");

    // Others go on.
    for seed in 10..14 {
        exchange(vm.say(&format!("both {seed} {LEN}")), seed, LEN).unwrap();
    }
    // And so do these, when they are read, without a byte lost.
    for stream in &unread {
        take(stream, 6, LEN).unwrap();
    }
    vm.does("release");
    for (stream, filled) in still.into_iter().zip(filled) {
        let rest = From {
            stream: &stream,
            skip: filled,
        };
        give(rest, 5, LEN).unwrap();
        stream.end().unwrap();
        answer(stream).unwrap();
    }
    end(vm);
    stage.leaves_nothing();
}

/// Writes what comes behind a number of bytes, which were written before.
struct From<'s> {
    stream: &'s UnixStream,
    skip: u64,
}

impl Write for From<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        match &bytes[skipped as usize..] {
            [] => Ok(skipped as usize),
            rest => Ok(skipped as usize + (&mut &*self.stream).write(rest)?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn one_direction_ends_and_the_other_goes_on() {
    let Some(stage) = stage() else { return };
    let vm = Vm::start(Kernel::Own, "", &[]);
    let before = held(&vm);
    // The host's direction ends first: the guest answers only then.
    let stream = vm.say("after");
    give(&stream, 1, MIB).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let early = (&stream).read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock, "before the end");
    peer::patient(&stream).unwrap();
    stream.end().unwrap();
    take(&stream, 1, MIB).unwrap();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
    drop(stream);
    // The guest's ends first: the host may send on.
    let stream = vm.say(&format!("give 2 {MIB}"));
    take(&stream, 2, MIB).unwrap();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0, "the guest's end");
    give(&stream, 3, 4 * MIB).unwrap();
    stream.end().unwrap();
    drop(stream);
    // Who goes without a word while bytes are under way takes nothing along but his own stream.
    for line in ["echo", "take 4 1000000", "give 4 100000000"] {
        let stream = vm.say(line);
        let _ = give(&stream, 4, 100_000);
        drop(stream);
    }
    lets_go(&vm, &before);
    vm.does("run true");
    end(vm);
    stage.leaves_nothing();
}

#[test]
fn a_reset_ends_all_streams_and_the_next_life_has_its_own() {
    let Some(stage) = stage() else { return };
    const STREAMS: u64 = 100;
    let vm = Vm::start(Kernel::Own, "", &[]);
    let before = held(&vm);
    for life in 1..=2 {
        // Some idle, some with bytes under way in both directions, some of which nobody reads.
        let streams: Vec<_> = (0..STREAMS)
            .map(|seed| match seed % 3 {
                0 => vm.say("echo"),
                1 => vm.say(&format!("give {seed} 100000000")),
                _ => vm.say("stall 1 1"),
            })
            .collect();
        control(&vm.guest.path("control"), async |mut vm| {
            vm.reset(ResetRequest {}).await
        })
        .unwrap();
        for mut stream in streams {
            // Its end, or an error: what is not is a wait without end.
            let _ = io::copy(&mut stream, &mut io::sink());
            assert!(stream.write_all(&[0; 1000]).is_err());
        }
        until("the guest has booted again", || {
            vm.said().matches("the peer listens").count() == life + 1
        });
        vm.wait_for_peer();
        lets_go(&vm, &before);
        exchange(vm.say(&format!("both 1 {MIB}")), 1, MIB).unwrap();
    }
    end(vm);
    stage.leaves_nothing();
}

#[test]
fn where_nobody_listens_nobody_waits() {
    let Some(stage) = stage() else { return };
    let vm = Vm::start(Kernel::Own, "", &[]);
    let before = held(&vm);
    for _ in 0..100 {
        let refused = vm.dial(9999).unwrap_err();
        assert!(
            matches!(
                refused.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
            ),
            "{refused:?}"
        );
    }
    // From the guest: no socket, and one that nobody listens at any more.
    let dead = listen(&vm, 7001);
    drop(dead);
    for port in [7000, 7001] {
        let refused = answer(vm.say(&format!("call {port} 1"))).unwrap_err();
        assert!(refused.contains("reset by peer"), "{refused}");
    }
    // What makes no sense is no request.
    let mut stream = UnixStream::connect(vm.guest.path("vsock")).unwrap();
    peer::patient(&stream).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(!matches!(stream.read(&mut [0]), Ok(1)));
    lets_go(&vm, &before);
    exchange(vm.say(&format!("both 1 {MIB}")), 1, MIB).unwrap();
    end(vm);
    stage.leaves_nothing();
}
