//! Real taps, each test in a network namespace of its own, where nothing of it stays.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;

use super::card::{DATA, RX, TX};
use super::*;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::test_driver::{TestQueue, TestTransport, ram};
use vm_memory::{Bytes, GuestAddress};

/// Takes this thread, and those that it starts, to a namespace of its own; `false` where that, or a tap, cannot be had.
fn alone() -> bool {
    // SAFETY: the call takes flags only, and changes this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: a network namespace takes root");
        return false;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: there is no `ip` here");
        return false;
    }
    match Tap::open(&Source::Named("probe".into(), 1)) {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {line}: {done:?}");
}

fn named(name: &str, queues: u16) -> Source {
    Source::Named(name.into(), queues)
}

fn refused(source: &Source) -> String {
    Net::open(source, None, Vhost::Off).unwrap_err().to_string()
}

#[test]
fn a_tap_is_made_or_found_and_belongs_to_one() {
    if !alone() {
        return;
    }
    ip("tuntap add dev one mode tap");
    ip("link set one mtu 9000");
    ip("tuntap add dev many mode tap multi_queue");
    let one = Net::open(&named("one", 1), None, Vhost::Off).unwrap();
    assert_eq!(one.facts.mtu, Some(9000));
    assert!(refused(&named("one", 1)).contains("in use"));
    let message = refused(&named("one", 4));
    assert!(message.contains("multi_queue"), "{message}");
    let message = refused(&named("lo", 1));
    assert!(message.contains("no tap with 1 queues"), "{message}");
    drop(one);
    assert_eq!(
        Net::open(&named("one", 1), None, Vhost::Off)
            .unwrap()
            .facts
            .pairs,
        1
    );
    // A tap for several also works with one.
    assert_eq!(
        Net::open(&named("many", 1), None, Vhost::Off)
            .unwrap()
            .facts
            .pairs,
        1
    );
    let many = Net::open(&named("many", 4), None, Vhost::Off).unwrap();
    assert_eq!(many.queue_sizes().len(), 9);
    for count in [1, 4, 2, 4] {
        many.port.use_queues(count).unwrap();
    }
    let new = Net::open(&named("new", 2), None, Vhost::Off).unwrap();
    ip("link show new");
    drop(new);
    let shown = Command::new("ip").args(["link", "show", "new"]).output();
    assert!(!shown.unwrap().status.success(), "it goes with the device");
}

#[test]
fn a_tap_is_handed_over_by_its_descriptors() {
    if !alone() {
        return;
    }
    let first = Tap::open(&named("first", 2)).unwrap();
    let second = Tap::open(&named("second", 1)).unwrap();
    let fd = |tap: &Tap, index: usize| tap.queues()[index].as_raw_fd();
    let net = Net::open(
        &Source::Given(vec![fd(&first, 0), fd(&first, 1)]),
        Some([2, 0, 0, 0, 0, 9]),
        Vhost::Off,
    );
    let net = net.unwrap();
    assert_eq!((net.facts.pairs, net.port.name()), (2, "first"));
    assert_eq!(net.config()[..6], [2, 0, 0, 0, 0, 9]);
    let mixed = Source::Given(vec![fd(&first, 0), fd(&second, 0)]);
    assert!(refused(&mixed).contains("the same one"));
    let file = tempfile::tempfile().unwrap();
    for fd in [file.as_raw_fd(), 12_345] {
        let message = refused(&Source::Given(vec![fd]));
        assert!(message.contains("is not a queue of a tap"), "{message}");
    }
}

#[test]
fn the_mtu_is_that_of_the_tap_and_of_no_other_of_its_name() {
    if !alone() {
        return;
    }
    ip("tuntap add dev twin mode tap");
    ip("link set twin mtu 9000");
    let twin = Tap::open(&named("twin", 1)).unwrap();
    let given = Source::Given(vec![twin.queues()[0].as_raw_fd()]);
    let mtu = || Tap::open(&given).unwrap().mtu();
    assert_eq!(mtu(), Some(9000));
    // Somewhere else there is another.
    assert!(alone());
    assert_eq!(mtu(), None);
    ip("tuntap add dev twin mode tap");
    assert_eq!(mtu(), None);
}

/// Without vhost-net, and with it where it is there.
fn ways() -> Vec<Vhost> {
    match vhost::probe() {
        Ok(()) => vec![Vhost::Off, Vhost::On],
        Err(error) => {
            println!("skipped: there is no vhost-net here: {error}");
            vec![Vhost::Off]
        }
    }
}

/// A started card on the tap `t0`, with addresses on the host's side, and a driver.
fn card(vhost: Vhost) -> (Net, Vec<TestQueue>, TestTransport, Arc<GuestMemory>) {
    let net = Net::open(&named("t0", 1), Some([2, 0, 0, 0, 0, 2]), vhost).unwrap();
    ip("link set t0 address 02:00:00:00:00:01");
    ip("addr add 10.9.0.1/24 dev t0");
    ip("link set t0 up");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev t0");
    started(net)
}

/// Starts it, also after a stop.
fn started(mut net: Net) -> (Net, Vec<TestQueue>, TestTransport, Arc<GuestMemory>) {
    let memory = ram(0x80_0000);
    let drivers: Vec<_> = (0..2)
        .map(|index| TestQueue::new(&memory, 0x1000 + index * 0x4000, 64, true))
        .collect();
    let transport = TestTransport::new();
    let both: Vec<_> = drivers.iter().collect();
    net.start(transport.active(net.features(), &both)).unwrap();
    (net, drivers, transport, memory)
}

/// A UDP datagram of 10.9.0.2 port 7 to 10.9.0.1 port `port`, with its checksum left to the tap.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let udp = 8 + payload.len() as u16;
    // NEEDS_CSUM, no segments, csum_start, csum_offset, num_buffers
    let mut packet = vec![1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    packet.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    let mut header = vec![0x45, 0];
    header.extend((20 + udp).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    let sum = |words: &[u8]| -> u16 {
        let words = words
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    };
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    // The sum of the pseudo header, as an unfinished checksum has it.
    let mut pseudo = header[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(udp.to_be_bytes());
    packet.extend(header);
    packet.extend(7u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(udp.to_be_bytes());
    packet.extend(sum(&pseudo).to_be_bytes());
    packet.extend(payload);
    packet
}

/// A datagram each way; the host does the checksums.
fn works(drivers: &mut [TestQueue], memory: &GuestMemory) {
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let sent = datagram(port, b"out of the guest");
    memory.write_slice(&sent, GuestAddress(DATA)).unwrap();
    let buffer = (DATA, sent.len() as u32, false);
    let head = drivers[TX].add(&[buffer]).unwrap();
    drivers[TX].kick();
    assert_eq!(drivers[TX].wait_used(), (head, 0));
    let mut text = [0; 100];
    let (len, from) = socket.recv_from(&mut text).unwrap();
    assert_eq!(&text[..len], b"out of the guest");
    assert_eq!(from.to_string(), "10.9.0.2:7");

    socket.send_to(b"into the guest", "10.9.0.2:7").unwrap();
    // There may be others before it, such as of a neighbour discovery.
    loop {
        drivers[RX].add(&[(DATA, 2000, true)]).unwrap();
        drivers[RX].kick();
        let (_, len) = drivers[RX].wait_used();
        let mut got = vec![0; len as usize];
        memory.read_slice(&mut got, GuestAddress(DATA)).unwrap();
        if got.ends_with(b"into the guest") {
            assert_eq!(got[0], 1, "its checksum is left to the guest");
            assert_eq!(got[10..12], [1, 0]);
            break;
        }
    }
}

#[test]
fn datagrams_go_both_ways_and_the_host_does_the_checksums() {
    for vhost in ways() {
        if !alone() {
            return;
        }
        let (net, mut drivers, transport, memory) = card(vhost);
        works(&mut drivers, &memory);
        let counters = net.counters();
        assert_eq!(counters[5], ("tx_dropped", 0));
        assert_eq!(counters[6], ("vhost_pairs", u64::from(vhost == Vhost::On)));
        assert!(!transport.faulted());
        // And once more after a reset.
        let (_net, mut drivers, _transport, memory) = started(net);
        works(&mut drivers, &memory);
    }
}

#[test]
fn the_kernel_tells_of_a_guest_that_breaks_the_rules_and_goes_on_after_a_reset() {
    for vhost in ways() {
        for (queue, buffer) in [
            (TX, (DATA, 100, true)),
            (TX, (1 << 40, 100, false)),
            (RX, (DATA, 100, false)),
            (RX, (1 << 40, 100, true)),
        ] {
            if !alone() {
                return;
            }
            let (net, mut drivers, transport, _memory) = card(vhost);
            drivers[queue].add(&[buffer]).unwrap();
            drivers[queue].kick();
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            socket
                .send_to(b"for the receive queue", "10.9.0.2:7")
                .unwrap();
            transport.expect_fault();
            assert!(net.link.is_up());
            let (_net, mut drivers, _transport, memory) = started(net);
            works(&mut drivers, &memory);
        }
    }
}

#[test]
fn a_reset_in_a_flood_ends_all_writes_to_memory() {
    for vhost in ways() {
        if !alone() {
            return;
        }
        let (mut net, mut drivers, _, mut memory) = card(vhost);
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        for _ in 0..30 {
            for at in 0..16 {
                drivers[RX]
                    .add(&[(DATA + at * 0x800, 0x800, true)])
                    .unwrap();
                drivers[TX].add(&[(DATA, 1000, false)]).unwrap();
            }
            drivers.iter().for_each(TestQueue::kick);
            for _ in 0..10 {
                socket.send_to(&[1; 1000], "10.9.0.2:7").unwrap();
            }
            net.stop();
            let look = |drivers: &[TestQueue]| {
                let mut bytes = vec![0; 0x8000];
                memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
                (drivers[RX].used_index(), drivers[TX].used_index(), bytes)
            };
            let before = look(&drivers);
            for _ in 0..10 {
                socket.send_to(&[2; 1000], "10.9.0.2:7").unwrap();
            }
            assert!(before == look(&drivers), "it is still written to");
            (net, drivers, _, memory) = started(net);
        }
        works(&mut drivers, &memory);
    }
}

#[test]
fn what_the_tap_refuses_is_dropped_and_the_next_goes_through() {
    if !alone() {
        return;
    }
    let (net, mut drivers, transport, memory) = card(Vhost::Off);
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let good = datagram(socket.local_addr().unwrap().port(), b"good");
    let mut send = |packet: &[u8]| {
        memory.write_slice(packet, GuestAddress(DATA)).unwrap();
        let buffer = (DATA, packet.len() as u32, false);
        let head = drivers[TX].add(&[buffer]).unwrap();
        drivers[TX].kick();
        assert_eq!(drivers[TX].wait_used(), (head, 0));
    };
    let mut outside = good.clone();
    outside[6..10].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut unknown = good.clone();
    unknown[1] = 0x5f;
    for bad in [&good[..12], &good[..20], &outside, &unknown] {
        send(bad);
    }
    assert_eq!(net.counters()[5], ("tx_dropped", 4));
    ip("link set t0 down");
    send(&good);
    assert_eq!(net.counters()[5], ("tx_dropped", 5));
    ip("link set t0 up");
    send(&good);
    let mut text = [0; 100];
    assert_eq!(socket.recv(&mut text).unwrap(), 4);
    assert!(!transport.faulted());
    assert!(net.link.is_up());
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_down_whatever_the_card_waits_for() {
    let cases = [(false, 1), (true, 1), (true, 3)];
    let all = ways()
        .into_iter()
        .flat_map(|way| cases.map(|case| (way, case)));
    for (vhost, (receives, multi)) in all {
        if !alone() {
            return;
        }
        ip(&format!(
            "tuntap add dev t0 mode tap{}",
            if multi > 1 { " multi_queue" } else { "" }
        ));
        let (net, mut drivers, transport, memory) = card(vhost);
        if receives {
            drivers[RX].add(&[(DATA, 2000, true)]).unwrap();
            drivers[RX].kick();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(net.link.is_up());
        ip("link delete t0");
        assert!(wait(&transport.config, PATIENCE), "nobody was told");
        assert!(!net.link.is_up());
        assert!(!transport.faulted());
        memory.write_slice(&[0; 100], GuestAddress(DATA)).unwrap();
        for _ in 0..100 {
            let head = drivers[TX].add(&[(DATA, 100, false)]).unwrap();
            drivers[TX].kick();
            assert_eq!(drivers[TX].wait_used(), (head, 0));
        }
        assert!(!transport.faulted());
        // Also for a driver that comes later.
        let (net, mut drivers, transport, _memory) = started(net);
        let head = drivers[TX].add(&[(DATA, 100, false)]).unwrap();
        drivers[TX].kick();
        assert_eq!(drivers[TX].wait_used(), (head, 0));
        assert!(!transport.faulted() && !net.link.is_up());
    }
}
