//! Machines of every size: a guest sees the processors, the memory and the devices that were asked for, with each kernel.

mod common;
mod guest;

use common::stage;
use guest::{Guest, Kernel};

/// Prints what the guest has found, a word and its value a line.
const LOOK: &str = "\
    echo release $(uname -r); \
    echo processors $(grep -c ^processor /proc/cpuinfo); \
    echo apicids $(sed -n 's/^apicid.*: //p' /proc/cpuinfo); \
    echo memory $(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo); \
    echo functions $(cat /sys/bus/pci/devices/*/device); \
    load virtio_rng; head -c 16 /dev/hwrng >/dev/null; \
    echo interrupts $(grep -c 'virtio0' /proc/interrupts); \
    poweroff -f";

#[test]
fn the_cloud_kernel_with_one_processor_and_little_memory() {
    looks(Kernel::Vmlinux, 1, "128M");
}

#[test]
fn the_cloud_kernel_as_packaged_with_two_processors_and_a_gigabyte() {
    looks(Kernel::BzImage, 2, "1G");
}

#[test]
fn the_cloud_kernel_with_eight_processors_and_memory_above_the_hole() {
    looks(Kernel::Vmlinux, 8, "4608M");
}

#[test]
fn the_kernel_for_all_machines_with_two_processors_and_a_gigabyte() {
    looks(Kernel::Full, 2, "1G");
}

#[test]
fn a_newer_kernel_with_one_processor_and_a_gigabyte() {
    looks(Kernel::Newer, 1, "1G");
}

#[test]
fn our_own_kernel_with_one_processor_and_little_memory() {
    looks(Kernel::Own, 1, "128M");
}

#[test]
fn our_own_kernel_as_a_bzimage_with_two_processors_and_a_gigabyte() {
    looks(Kernel::OwnBzImage, 2, "1G");
}

#[test]
fn our_own_kernel_with_eight_processors_and_memory_above_the_hole() {
    looks(Kernel::Own, 8, "4608M");
}

fn looks(kernel: Kernel, cpus: usize, memory: &str) {
    let Some(stage) = stage() else { return };
    let guest = Guest::new(kernel, LOOK);
    let count = cpus.to_string();
    let ended = guest.run(&["--cpus", &count, "--memory", memory]);
    assert_eq!(ended.status, 0, "{}\n{}", ended.error(), ended.output());
    let output = ended.output();
    let said = |word: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("no {word:?} in {output}"))
            .trim()
            .to_owned()
    };
    assert_eq!(said("processors "), count);
    let ids: Vec<_> = (0..cpus).map(|id| id.to_string()).collect();
    assert_eq!(said("apicids "), ids.join(" "));
    let asked: u64 = match memory.split_at(memory.len() - 1) {
        (number, "G") => number.parse::<u64>().unwrap() << 20,
        (number, _) => number.parse::<u64>().unwrap() << 10,
    };
    let found: u64 = said("memory ").parse().unwrap();
    // The kernel keeps a part of it for itself: its image, and a sixty-fourth for its notes on each page.
    let least = asked - asked / 32 - (48 << 10);
    assert!((least..=asked).contains(&found), "{found} of {asked} KiB");
    assert_eq!(
        said("functions "),
        "0x0008 0x1044 0x1045",
        "the host bridge, virtio-rng and virtio-balloon"
    );
    // The configuration interrupt and the queue's.
    assert_eq!(said("interrupts "), "2", "{output}");
    drop(guest);
    stage.leaves_nothing();
}
