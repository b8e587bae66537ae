//! A VM's network, as its guest and its host see it.

mod common;
mod guest;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::stage;
use guest::tap::{Tap, has_vhost, ip, queue_of};
use guest::{Guest, Kernel, control};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use orlop_proto::vmm::v1::DescribeRequest;

const MIB: usize = 1 << 20;
/// How long a guest may take over its packets on an emulated machine that is busy with other things.
const LONG: Duration = Duration::from_secs(300);

/// Numbers that are the same in every run, other ones for each stream, and nowhere twice.
fn pattern(stream: usize, mib: usize) -> Vec<u8> {
    let mut state = (stream as u64) << 32;
    let mut bytes = Vec::with_capacity(mib * MIB);
    while bytes.len() < mib * MIB {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend(mixed.to_le_bytes());
    }
    bytes
}

/// Serves one connection on a port of the host's end.
fn serve<T: Send + 'static>(
    tap: &Tap,
    port: usize,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = TcpListener::bind((tap.host(), port as u16)).unwrap();
    thread::spawn(move || serve(listener.accept().unwrap().0))
}

/// Checksum errors of TCP, as this machine has counted them.
fn checksum_errors() -> String {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap();
    let line = text.lines().rfind(|line| line.starts_with("Tcp:")).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

/// A guest of `cpus` processors that pings, is pinged, and passes `mib` MiB through each of as many connections as there are queues,
/// both ways at full size, to the byte.
fn passes_bytes(
    kernel: Kernel,
    queues: u16,
    cpus: &str,
    mib: usize,
    options: &str,
) -> Vec<(String, u64)> {
    let Some(stage) = stage() else {
        return Vec::new();
    };
    let tap = Tap::new(queues);
    let (host, peer, up) = (tap.host(), tap.guest(), tap.bring_up());
    let script = format!(
        "{up} mkdir /dev/data; mount -t tmpfs data /dev/data; \
         echo card $(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu); \
         echo queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l); \
         ping -c 3 {host} && echo the host answers; \
         for at in $(seq 1 {queues}); do nc {host} $((7000 + at)) </dev/null >/dev/data/$at & done; wait; \
         echo got $(cat /dev/data/* | wc -c); \
         for at in $(seq 1 {queues}); do nc {host} $((8000 + at)) </dev/data/$at >/dev/null & done; wait; \
         echo checksum errors $(grep ^Tcp: /proc/net/snmp | tail -n 1 | sed 's/.* //'); \
         nc {host} 9000 </dev/null >/dev/null; poweroff -f"
    );
    let streams = 1..=usize::from(queues);
    let mut downloads = Vec::new();
    let mut uploads = Vec::new();
    for at in streams.clone() {
        let peer = peer.clone();
        downloads.push(serve(&tap, 7000 + at, move |mut stream| {
            if at == 1 {
                let ping = Command::new("busybox")
                    .args(["ping", "-c", "3", &peer])
                    .output();
                assert!(ping.unwrap().status.success(), "the guest does not answer");
            }
            stream.write_all(&pattern(at, mib)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }));
        uploads.push(serve(&tap, 8000 + at, |mut stream| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map(|_| bytes)
        }));
    }
    let guest = Guest::new(kernel, &script);
    let socket = guest.path("control");
    let described = serve(&tap, 9000, {
        let socket = socket.clone();
        move |_stream| {
            let what = control(&socket, async |mut vm| {
                vm.describe(DescribeRequest {}).await
            });
            what.unwrap()
        }
    });
    let errors = checksum_errors();
    let running = guest.start(&[
        "--cpus",
        cpus,
        "--memory",
        "512M",
        "--api-socket",
        socket.to_str().unwrap(),
        "--net",
        &format!("tap={},mac=02:00:00:12:34:56{options}", tap.name),
    ]);
    let ended = running.wait(LONG).unwrap();
    let output = ended.output();
    for line in [
        "card 02:00:00:12:34:56 mtu 1500",
        &format!("queues {queues}"),
        "the host answers",
        &format!("got {}", usize::from(queues) * mib * MIB),
        "checksum errors 0",
    ] {
        assert!(output.contains(&format!("{line}\r\n")), "{line}: {ended:?}");
    }
    assert_eq!(ended.status, 0, "{}", ended.error());
    for download in downloads {
        download.join().unwrap();
    }
    for (at, upload) in streams.zip(uploads) {
        let bytes = upload.join().unwrap().unwrap();
        assert!(bytes == pattern(at, mib), "stream {at} came back otherwise");
    }
    assert_eq!(checksum_errors(), errors);
    let described = described.join().unwrap();
    drop((guest, tap));
    stage.leaves_nothing();
    let card = described
        .devices
        .into_iter()
        .find(|device| device.kind == "virtio-net");
    card.unwrap().counters.into_iter().collect()
}

/// What the counters of a card must say that has passed so many MiB each way: by threads of ours or by the kernel.
fn check(counters: &[(String, u64)], mib: u64, vhost_pairs: u64) {
    println!("{counters:?}");
    for (name, value) in counters {
        match name.as_str() {
            "vhost_pairs" => assert_eq!(*value, vhost_pairs),
            "rx_dropped" | "tx_dropped" => assert_eq!(*value, 0, "{name}"),
            "rx_bytes" | "tx_bytes" if vhost_pairs == 0 => assert!(*value > mib << 20, "{name}"),
            // The kernel counts for itself.
            _ => assert!(vhost_pairs == 0 || *value == 0, "{name} {value}"),
        }
    }
}

#[test]
fn a_guest_and_its_host_ping_each_other_and_pass_bytes_both_ways() {
    check(
        &passes_bytes(Kernel::Vmlinux, 1, "1", 16, ",vhost=off"),
        16,
        0,
    );
}

#[test]
fn our_own_kernel_passes_bytes() {
    check(&passes_bytes(Kernel::Own, 1, "1", 16, ",vhost=off"), 16, 0);
}

#[test]
fn the_kernel_passes_bytes_where_the_host_has_vhost_net() {
    if has_vhost() {
        check(&passes_bytes(Kernel::Own, 1, "1", 16, ""), 16, 1);
    }
}

#[test]
fn four_pairs_of_queues_pass_bytes_for_four_processors() {
    check(
        &passes_bytes(Kernel::Own, 4, "4", 2, ",queues=4,vhost=off"),
        8,
        0,
    );
}

#[test]
fn the_kernel_passes_bytes_by_four_pairs_of_queues() {
    if has_vhost() {
        check(
            &passes_bytes(Kernel::Own, 4, "4", 2, ",queues=4,vhost=on"),
            8,
            4,
        );
    }
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_down_and_the_vm_lives() {
    loses_its_tap("vhost=off");
}

#[test]
fn a_tap_that_is_deleted_under_the_kernel_takes_the_link_down_and_the_vm_lives() {
    if has_vhost() {
        loses_its_tap("vhost=on");
    }
}

fn loses_its_tap(vhost: &str) {
    let Some(stage) = stage() else { return };
    let tap = Tap::new(1);
    let (host, up) = (tap.host(), tap.bring_up());
    // It sends all the while.
    let script = format!(
        "{up} echo carrier $(cat /sys/class/net/eth0/carrier); nc {host} 7001 </dev/zero >/dev/null & \
         while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 100000; done; \
         echo then carrier $(cat /sys/class/net/eth0/carrier); \
         ping -c 2 -W 1 {host} >/dev/null 2>&1 || echo nobody answers; \
         echo and alive; poweroff -f"
    );
    let name = tap.name.clone();
    let sink = serve(&tap, 7001, move |mut stream| {
        let mut bytes = vec![0; MIB];
        stream.read_exact(&mut bytes).unwrap();
        ip(&format!("link delete {name}"));
    });
    let guest = Guest::new(Kernel::Own, &script);
    let ended = guest.run(&["--net", &format!("tap={},{vhost}", tap.name)]);
    let output = ended.output();
    for line in ["carrier 1", "then carrier 0", "nobody answers", "and alive"] {
        assert!(output.contains(&format!("{line}\r\n")), "{line}: {ended:?}");
    }
    assert_eq!(ended.status, 0, "{}", ended.error());
    let error = ended.error();
    let told = error.matches("the guest's link is down").count();
    assert!(told == 1 && !error.contains("must reset"), "{error}");
    sink.join().unwrap();
    drop((guest, tap));
    stage.leaves_nothing();
}

#[test]
fn a_tap_is_handed_over_by_its_descriptor_and_lives_through_a_reboot() {
    let Some(stage) = stage() else { return };
    let tap = Tap::new(1);
    let (host, up) = (tap.host(), tap.bring_up());
    let script = format!(
        "{up} ping -c 2 {host} >/dev/null && echo the host answers $(cat /sys/class/net/eth0/address); \
         nc {host} 7001 </dev/null >/dev/null && reboot -f; poweroff -f"
    );
    // There is somebody at the port for the first of the guest's lives.
    let first = serve(&tap, 7001, |_stream| {});
    let queue = queue_of(&tap.name);
    // What is started now has it.
    fcntl(&queue, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let guest = Guest::new(Kernel::Own, &script);
    let running = guest.start(&["--net", &format!("fd={}", queue.as_raw_fd())]);
    drop(queue);
    let ended = running.wait(guest::LIMIT).unwrap();
    let output = ended.output();
    let answers: Vec<_> = output
        .lines()
        .filter(|line| line.starts_with("the host answers"))
        .collect();
    assert_eq!(answers.len(), 2, "{ended:?}");
    assert_eq!(answers[0], answers[1], "another address");
    assert_eq!(ended.status, 0, "{}", ended.error());
    first.join().unwrap();
    drop((guest, tap));
    stage.leaves_nothing();
}

#[test]
fn a_tap_that_cannot_be_used_is_told_with_what_to_do() {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(Kernel::Own, "poweroff -f");
    let tap = Tap::new(1);
    let held = queue_of(&tap.name);
    for (net, hint) in [
        (format!("tap={}", tap.name), "in use"),
        ("tap=lo".into(), "ip tuntap add dev lo"),
        ("fd=999".into(), "descriptor 999 is not a queue of a tap"),
    ] {
        let refused = guest.run(&["--net", &net]);
        assert_eq!(refused.status, 1, "{refused:?}");
        assert!(refused.error().contains(hint), "{}", refused.error());
    }
    drop(held);
    let single = format!("tap={},queues=2", tap.name);
    let refused = guest.run(&["--net", &single]);
    assert!(
        refused.error().contains("multi_queue"),
        "{}",
        refused.error()
    );
    tap.delete();
    drop((guest, tap));
    stage.leaves_nothing();
}
