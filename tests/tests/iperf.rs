//! Much data by iperf3 between a guest and its host, both ways, by threads of the VMM's and by the host's kernel: nothing arrives with a
//! wrong checksum, and no card counts an error.

mod common;
mod guest;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::stage;
use guest::tap::{Tap, has_vhost, ip};
use guest::{Guest, Kernel};
use orlop_testbed::containerd::ctr::{Done, Running};
use orlop_testbed::stories;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// How long an emulated machine that is busy with other things may take for everything.
const LONG: Duration = Duration::from_secs(1000);

/// Prints each line that says something of errors: the checksums of IP, ICMP, TCP and UDP, and what the card has counted.
const COUNTS: &str = "\
    awk '/^(Ip|Icmp|Tcp|Udp):/ {n[$1]++; for (i = 2; i <= NF; i++) if (n[$1] == 1) name[$1 i] = $i; \
         else if (name[$1 i] == \"InCsumErrors\") sum += $i} END {print \"checksum errors \" sum+0}' /proc/net/snmp; \
    awk '/Csum/ {sum += $2} END {print \"checksum errors by IPv6 \" sum+0}' /proc/net/snmp6; \
    sed -n 's/^ *eth0: */card /p' /proc/net/dev; ";

/// An iperf3 that serves one client at this address.
fn serve(address: &str) -> Running {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--json", "--bind", address]);
    Running::start(command, &[]).unwrap()
}

/// How many bytes a server says that it has received, or sent.
fn bytes(done: &Done, what: &str) -> u64 {
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    said["end"][what]["bytes"]
        .as_u64()
        .unwrap_or_else(|| panic!("{done:?}"))
}

/// Errors of checksums that this machine has counted.
fn checksum_errors() -> Vec<String> {
    let counts = Command::new("sh").args(["-c", COUNTS]).output().unwrap();
    let text = String::from_utf8(counts.stdout).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("checksum"));
    lines.map(str::to_owned).collect()
}

/// What a card has counted: received bytes, packets, errors, drops; the same for what was sent.
fn counts(columns: &str) -> [u64; 8] {
    let numbers: Vec<u64> = columns
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    [0, 1, 2, 3, 8, 9, 10, 11].map(|at| numbers[at])
}

/// Passes `full` MiB each way by as many connections as there are queues, or fewer where that would take long.
fn passes(queues: u16, vhost: &str, mtu: u32, v6: bool) {
    let Some(stage) = stage() else { return };
    let len = stories::size(24 * MIB, 1024 * MIB);
    let tap = Tap::new(queues);
    let host = if v6 { "fd77::1".to_owned() } else { tap.host() };
    let family = if v6 { "-6" } else { "-4" };
    ip(&format!("link set {} mtu {mtu}", tap.name));
    if v6 {
        ip(&format!("addr add fd77::1/64 dev {} nodad", tap.name));
    }
    let up = tap.bring_up();
    // The address must not be tentative when it is used.
    let up6 = "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr add fd77::2/64 dev eth0; ";
    let up = if v6 {
        format!("load virtio_net; {up6}{up} sleep 3;")
    } else {
        up
    };
    // The server counts until the client says that it has sent all, and so not what is under way then.
    let bytes_sent = len + 16 * MIB;
    let client =
        format!("iperf3 {family} --client {host} --bytes {bytes_sent} --parallel {queues}");
    // The server needs a moment for the next client.
    let script = format!(
        "mkdir /tmp; {up} echo mtu $(cat /sys/class/net/eth0/mtu); \
         until {client} >/tmp/sent 2>&1; do n=$((n + 1)); [ $n = 20 ] && cat /tmp/sent && poweroff -f; sleep 1; done; echo sent; \
         until {client} --reverse >/tmp/got 2>&1; do n=$((n + 1)); [ $n = 40 ] && cat /tmp/got && poweroff -f; sleep 1; done; echo got; \
         {COUNTS} poweroff -f"
    );
    let before = checksum_errors();
    let guest = Guest::with(Kernel::Own, &script, &[PathBuf::from("/usr/bin/iperf3")]);
    let first = serve(&host);
    let (cpus, begun) = (queues.to_string(), Instant::now());
    let running = guest.start(&[
        "--cpus",
        &cpus,
        "--memory",
        "512M",
        "--net",
        &format!("tap={},queues={queues},vhost={vhost}", tap.name),
    ]);
    let uploaded = first.wait(LONG).unwrap();
    let sent_after = begun.elapsed();
    let downloaded = serve(&host).wait(LONG).unwrap();
    println!(
        "up in {sent_after:.1?} with the boot, both in {:.1?}",
        begun.elapsed()
    );
    let ended = running.wait(LONG).unwrap();
    let output = ended.output();
    for line in [
        format!("mtu {mtu}"),
        "sent".into(),
        "got".into(),
        "checksum errors 0".into(),
        "checksum errors by IPv6 0".into(),
    ] {
        assert!(output.contains(&format!("{line}\r\n")), "{line}: {ended:?}");
    }
    assert_eq!(ended.status, 0, "{}", ended.error());
    let (up, down) = (
        bytes(&uploaded, "sum_received"),
        bytes(&downloaded, "sum_sent"),
    );
    assert!(up >= len, "{up} of {len} bytes: {}", uploaded.output());
    assert!(
        down >= len,
        "{down} of {len} bytes: {}",
        downloaded.output()
    );
    assert_eq!(checksum_errors(), before, "on the host");

    let card = output.lines().find_map(|line| line.strip_prefix("card "));
    let ours = fs::read_to_string("/proc/net/dev").unwrap();
    let ours = ours
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{}:", tap.name)));
    let (card, ours) = (counts(card.unwrap()), counts(ours.unwrap()));
    println!("the guest's card {card:?}, the tap {ours:?}");
    let [received, _, receive_errors, _, sent, _, send_errors, _] = card;
    assert!(received > len && sent > len, "{card:?}");
    assert_eq!((receive_errors, send_errors), (0, 0), "{card:?}");
    assert_eq!((ours[2], ours[6]), (0, 0), "the tap's errors: {ours:?}");
    drop((guest, tap));
    stage.leaves_nothing();
}

#[test]
fn one_queue_by_a_thread_of_ours() {
    passes(1, "off", 1500, false);
}

#[test]
fn one_queue_by_the_kernel() {
    if has_vhost() {
        passes(1, "on", 1500, false);
    }
}

#[test]
fn four_queues_by_threads_of_ours() {
    passes(4, "off", 1500, false);
}

#[test]
fn four_queues_by_the_kernel() {
    if has_vhost() {
        passes(4, "on", 1500, false);
    }
}

#[test]
fn ipv6_and_large_frames() {
    passes(1, "off", 9000, true);
}
