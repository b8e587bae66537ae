//! A guest without an operating system that drives its devices wrongly (`tests/hostile-guest`). Each attack must be told by the device, or
//! have no effect; the VMM lives, and does not grow however often all of it happens.

mod common;
mod guest;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::stage;
use guest::held::Held;
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::setup::build;

/// How often the list is gone through. Each time the devices are set up, and reset, more than 250 times.
const ROUNDS: u64 = 10;
/// After this round everything is there that is kept: threads' stacks, the allocator's arenas.
const SETTLED: u64 = 2;
/// How long the guest may take on an emulated machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(600);

/// The guest's memory: large enough that 62 buffers of it are more than 4 GiB.
const MEMORY_MIB: u64 = 192;
/// What the VMM may have more in the end, in KiB, for the allocator does not always lay things out alike. Between the two looks the devices
/// are set up more than 2,000 times, so a leak of 64 bytes in each is more.
const SLACK_KIB: u64 = 128;
/// As many lines as all the faults may leave in the log: without a limit there would be some 800.
const LOG_LINES: usize = 300;

/// The disk's size, a sector's, and what the upper half of each 8 bytes is; the lower is their number.
const DISK: usize = 1 << 20;
const MARK: u64 = 0x6f72_6c6f << 32;
/// What the disk begins with when the guest is to end.
const ENOUGH: u64 = u64::MAX;

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
];

/// Lets the guest begin so many rounds.
fn allow(disk: &Path, rounds: u64) {
    let disk = File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&rounds.to_le_bytes(), 0).unwrap();
}

#[test]
fn a_guest_that_breaks_every_rule_costs_itself_its_devices_and_the_host_nothing() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (disk, console) = (
        directory.path().join("disk"),
        directory.path().join("console"),
    );
    let numbers = (0..DISK as u64 / 8).flat_map(|number| (MARK | number).to_le_bytes());
    fs::write(&disk, numbers.collect::<Vec<_>>()).unwrap();
    allow(&disk, 1);

    let mut command = Command::new(build::programs_directory().join("orlop"));
    command.args(["run", "--name", "hostile", "--no-reboot"]);
    // The guest speaks by its serial port, and the other console's words are shown as well.
    command.args(["--console-device", "virtio"]);
    command.args(["--memory", &format!("{MEMORY_MIB}M")]);
    command.arg("--kernel").arg(build::hostile_guest());
    command
        .arg("--disk")
        .arg(format!("path={}", disk.display()));
    command
        .arg("--console")
        .arg(format!("file={}", console.display()));
    let running = Running::start(command, &[]).unwrap();
    let id = running.id();

    let said = || fs::read_to_string(&console).unwrap_or_default();
    let mut held = Vec::new();
    for round in 1..=ROUNDS {
        let over = format!("round {round} over\n");
        guest::until(&over, || said().contains(&over) || !is_alive(id));
        // A guest in which something failed does not wait.
        if said().contains("FAILED") || !is_alive(id) {
            break;
        }
        // This one now does nothing but read the disk's first sector until it may go on.
        held.push(Held::by_vmm(id));
        println!("round {round}: {:?}", held.last().unwrap());
        let next = if round == ROUNDS { ENOUGH } else { round + 1 };
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
    for attack in ATTACKS {
        let line = format!("ok {attack}");
        let times = said.lines().filter(|said| **said == line).count();
        assert_eq!(times as u64, ROUNDS, "{line}: {said}");
    }
    assert!(said.contains(&format!("\n{ROUNDS} rounds: ")), "{said}");
    assert_eq!(held.len() as u64, ROUNDS, "{held:#?}");

    let (settled, last) = (&held[SETTLED as usize - 1], &held[ROUNDS as usize - 1]);
    assert!(last.kib <= settled.kib + SLACK_KIB, "it grows: {held:#?}");
    assert_eq!(last.threads, settled.threads, "{held:#?}");
    assert_eq!(last.descriptors, settled.descriptors, "{held:#?}");

    let log = ended.error();
    assert!(log.contains("the guest must reset this device"), "{log}");
    let lines = log.lines().count();
    assert!(lines <= LOG_LINES, "{lines} lines of log");
    println!("{lines} lines of log");
    drop(directory);
    stage.leaves_nothing();
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
