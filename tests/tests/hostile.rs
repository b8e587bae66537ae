//! A guest without an operating system that drives its devices wrongly (`tests/hostile-guest`). Each attack must be told by the device, or
//! have no effect; the VMM lives, and does not grow however often all of it happens.

mod common;
mod guest;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::stage;
use guest::control;
use guest::held::Held;
use guest::tap::{Tap, has_vhost};
use orlop_proto::vmm::v1::ResizeRequest;
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::setup::build;
use orlop_testbed::stories::size;

/// How often the list is gone through. Each time the devices are set up, and reset, some 600 times.
const ROUNDS: (u64, u64) = (3, 6);
/// After this round everything is there that is kept: threads' stacks, the allocator's arenas.
const SETTLED: u64 = 2;
/// How long the guest may take on an emulated machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(600);
/// How long one round may take there.
const ROUND: Duration = Duration::from_secs(300);

/// The guest's memory: large enough that 62 buffers of it are more than 4 GiB.
const MEMORY_MIB: u64 = 192;
/// What it may plug besides: four blocks.
const PLUGGED_MIB: u64 = 8;
/// What the VMM may have more in the end, in KiB, for the allocator does not always lay things out alike. Between the two looks the devices
/// are set up more than 600 times, so a leak of 256 bytes in each is more; at full size, more than 2,000 times.
const SLACK_KIB: u64 = 128;
/// As many lines as all the faults may leave in the log: without a limit there would be more than a thousand.
const LOG_LINES: usize = 300;

/// The disk's size, a sector's, and what the upper half of each 8 bytes is; the lower is their number.
const DISK: usize = 1 << 20;
const MARK: u64 = 0x6f72_6c6f << 32;
/// What the disk begins with when the guest is to end.
const ENOUGH: u64 = u64::MAX;

/// Who carries the card's packets, and so what is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    /// The VMM: all of it.
    Vmm,
    /// The host's kernel: the card alone.
    Vhost,
}

impl Carrier {
    /// What the guest reads of it, behind the number of rounds.
    fn mark(self) -> u64 {
        match self {
            Carrier::Vmm => 0,
            Carrier::Vhost => 1,
        }
    }

    /// What `--net` says of it.
    fn argument(self) -> &'static str {
        match self {
            Carrier::Vmm => "off",
            Carrier::Vhost => "on",
        }
    }

    /// The attacks that there must be.
    fn attacks(self) -> impl Iterator<Item = &'static &'static str> {
        let all = self == Carrier::Vmm;
        ATTACKS
            .iter()
            .filter(move |name| all || name.starts_with("net-"))
    }
}

/// The attacks that there must be at least. There are more; all of them must go well.
const ATTACKS: &[&str] = &[
    "ring-outside-ram-descriptors",
    "ring-outside-ram-driver",
    "ring-outside-ram-device",
    "ring-across-ram-end",
    "queue-size-zero",
    "queue-size-not-a-power-of-two",
    "queue-size-above-maximum",
    "chain-cycle-of-one",
    "chain-cycle-of-three",
    "chain-buffer-outside-ram",
    "indirect-nested",
    "indirect-oversized",
    "indirect-longer-than-the-queue",
    "indirect-cycle",
    "request-without-status",
    "request-sector-overflow",
    "available-index-jumps-ahead",
    "available-index-goes-back",
    "head-twice",
    "queue-writes-after-driver-ok",
    "queue-select-out-of-range",
    "msix-vector-out-of-range",
    "msix-table-out-of-range",
    "odd-access-sizes-of-writes",
    "odd-access-sizes-of-reads",
    "odd-access-sizes-of-kicks",
    "reset-with-requests-in-flight",
    "balloon-page-outside-ram",
    "balloon-list-of-odd-size",
    "balloon-list-oversized",
    "balloon-list-of-zero-length",
    "balloon-report-outside-ram",
    "balloon-report-of-the-rings",
    "balloon-reset-in-flight",
    "console-output-to-be-written",
    "console-output-of-zero-length",
    "console-output-outside-ram",
    "console-one-queue-only",
    "console-size-written",
    "console-reset-in-flight",
    "randomness-reset-in-flight",
    "net-flood-without-buffers",
    "net-packet-of-zero-length",
    "net-packet-oversized",
    "net-header-malformed",
    "net-chain-cycle",
    "net-available-index-jumps-ahead",
    "net-control-garbage",
    "net-reset-in-flight",
    "vsock-credit-without-end",
    "vsock-data-beyond-credit",
    "vsock-length-beyond-the-buffer",
    "vsock-unknown-operations",
    "vsock-unknown-types",
    "vsock-flood-of-requests",
    "vsock-reset-in-flight",
    "hotplug-eject-of-absent-slots",
    "hotplug-eject-of-the-host-bridge",
    "hotplug-odd-widths",
    "mem-more-than-requested",
    "mem-outside-the-region",
    "mem-blocks-that-are-none",
    "mem-unknown-requests",
    "mem-request-too-short",
    "mem-answer-nowhere",
    "mem-config-written",
    "mem-reset-in-flight",
    "mem-reads-into-unplugged",
    "mem-unplugged-under-a-read",
    "vcpu-eject-of-absent-ones",
    "vcpu-eject-of-the-first",
    "vcpu-odd-widths",
];

/// The ports of the host that the guest calls by vsock: where somebody takes everything and sends without end, and where nobody takes
/// anything.
const BUSY: u32 = 7000;
const DEAF: u32 = 7001;

/// Between two bursts from the host. Each fills the rings; more of them would only bring the emulated host down, whose kernel does not bear
/// many interrupts while a guest runs.
const PAUSE: Duration = Duration::from_millis(60);

/// What happens on the host all the while, until this is dropped.
struct Surroundings {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Surroundings {
    fn of(tap: &Tap, vsock: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let listen = |port| {
            let mut path = vsock.as_os_str().to_owned();
            path.push(format!("_{port}"));
            let listener = UnixListener::bind(PathBuf::from(path)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let (busy, deaf) = (listen(BUSY), listen(DEAF));
        let broadcast = tap.broadcast();
        let mut threads = Vec::new();
        let mut work = |mut step: Box<dyn FnMut() + Send>| {
            let over = Arc::clone(&over);
            threads.push(thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    step();
                }
            }));
        };
        // Packets to the guest, many at once.
        let socket = UdpSocket::bind((tap.host(), 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        work(Box::new(move || {
            for _ in 0..20 {
                // It fails while the card is not taken by anybody.
                let _ = socket.send_to(&[7; 300], (&*broadcast, 9));
            }
            thread::sleep(PAUSE);
        }));
        let mut streams: Vec<UnixStream> = Vec::new();
        work(Box::new(move || {
            streams.extend(accepted(&busy));
            streams.retain_mut(|stream| is_busy(stream));
            thread::sleep(PAUSE);
        }));
        let mut held: Vec<UnixStream> = Vec::new();
        work(Box::new(move || {
            held.extend(accepted(&deaf));
            // Those that the VMM has closed say that they are writable and fail.
            held.retain(|mut stream| !matches!(stream.write(&[0]), Err(error) if error.kind() != io::ErrorKind::WouldBlock));
            thread::sleep(PAUSE);
        }));
        Surroundings { over, threads }
    }

    fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn accepted(listener: &UnixListener) -> Vec<UnixStream> {
    let mut streams = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true).unwrap();
        streams.push(stream);
    }
    streams
}

/// Sends as much as goes, and takes what came; says whether the stream is still there.
fn is_busy(mut stream: &UnixStream) -> bool {
    use std::io::Read;
    let mut buffer = [0; 16 << 10];
    let goes_on = |done: io::Result<usize>| match done {
        Ok(count) => count > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    };
    let taken = goes_on(stream.read(&mut buffer));
    taken && goes_on(stream.write(&buffer))
}

/// Lets the guest begin so many rounds.
fn allow(disk: &Path, rounds: u64) {
    let disk = File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&rounds.to_le_bytes(), 0).unwrap();
}

#[test]
fn a_guest_that_breaks_every_rule_costs_itself_its_devices_and_the_host_nothing() {
    is_survived(Carrier::Vmm);
}

#[test]
fn a_guest_that_breaks_every_rule_of_a_card_of_the_kernel_s_costs_the_host_nothing() {
    if has_vhost() {
        is_survived(Carrier::Vhost);
    }
}

fn is_survived(carrier: Carrier) {
    let Some(stage) = stage() else { return };
    let rounds = size(ROUNDS.0, ROUNDS.1);
    let directory = tempfile::tempdir().unwrap();
    let (disk, console) = (
        directory.path().join("disk"),
        directory.path().join("console"),
    );
    let numbers = (0..DISK as u64 / 8).flat_map(|number| (MARK | number).to_le_bytes());
    fs::write(&disk, numbers.collect::<Vec<_>>()).unwrap();
    allow(&disk, 1);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&carrier.mark().to_le_bytes(), 8).unwrap();
    drop(file);
    // Two queues: a card with one has no control queue.
    let (tap, vsock) = (Tap::new(2), directory.path().join("vsock"));
    let surroundings = Surroundings::of(&tap, &vsock);

    let mut command = Command::new(build::programs_directory().join("orlop"));
    command.args(["run", "--name", "hostile", "--no-reboot"]);
    // The guest speaks by its serial port, and the other console's words are shown as well.
    command.args(["--console-device", "virtio"]);
    command.args(["--cpus", "1,max=4"]);
    command.args([
        "--memory",
        &format!("{MEMORY_MIB}M,max={}M", 2 * MEMORY_MIB),
    ]);
    let control_socket = directory.path().join("control");
    command.arg("--api-socket").arg(&control_socket);
    command.arg("--kernel").arg(build::hostile_guest());
    command
        .arg("--disk")
        .arg(format!("path={}", disk.display()));
    command.arg("--net").arg(format!(
        "tap={},queues=2,vhost={}",
        tap.name,
        carrier.argument()
    ));
    command
        .arg("--vsock")
        .arg(format!("socket={}", vsock.display()));
    command
        .arg("--console")
        .arg(format!("file={}", console.display()));
    let running = Running::start(command, &[]).unwrap();
    let id = running.id();
    let request = ResizeRequest {
        memory_bytes: (MEMORY_MIB + PLUGGED_MIB) << 20,
        ..Default::default()
    };
    // Whether the guest ever has as much is not for this operation to wait for.
    within("the VM hears of a size", || {
        control(&control_socket, async |mut vm| vm.resize(request).await).is_ok()
    });

    let said = || fs::read_to_string(&console).unwrap_or_default();
    let mut held = Vec::new();
    for round in 1..=rounds {
        let over = format!("round {round} over\n");
        within(&over, || said().contains(&over) || !is_alive(id));
        // A guest in which something failed does not wait.
        if said().contains("FAILED") || !is_alive(id) {
            break;
        }
        // This one now does nothing but read the disk's first sector until it may go on.
        held.push(Held::by_vmm(id));
        println!("round {round}: {:?}", held.last().unwrap());
        let next = if round == rounds { ENOUGH } else { round + 1 };
        allow(&disk, next);
    }
    let ended = running.wait(LIMIT).unwrap();
    let said = said();
    let failed: Vec<_> = said
        .lines()
        .filter(|line| line.contains("FAILED"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}\n{}", ended.error());
    assert_eq!(ended.status, 0, "{said}\n{}", ended.error());
    for attack in carrier.attacks() {
        let line = format!("ok {attack}");
        let times = said.lines().filter(|said| **said == line).count();
        assert_eq!(times as u64, rounds, "{line}: {said}");
    }
    assert!(said.contains(&format!("\n{rounds} rounds: ")), "{said}");
    let last = "\nok hotplug-eject-of-everything";
    assert!(said.contains(last), "{said}");
    assert_eq!(held.len() as u64, rounds, "{held:#?}");

    let (settled, last) = (&held[SETTLED as usize - 1], &held[rounds as usize - 1]);
    assert!(last.kib <= settled.kib + SLACK_KIB, "it grows: {held:#?}");
    assert_eq!(last.threads, settled.threads, "{held:#?}");
    assert_eq!(last.descriptors, settled.descriptors, "{held:#?}");

    let log = ended.error();
    assert!(log.contains("the guest must reset this device"), "{log}");
    let lines = log.lines().count();
    assert!(lines <= LOG_LINES, "{lines} lines of log");
    println!("{lines} lines of log");
    surroundings.end();
    drop((directory, tap));
    stage.leaves_nothing();
}

/// Waits until something holds, as long as a round may take.
fn within(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + ROUND;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {ROUND:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Whether the process runs still.
fn is_alive(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}
