//! A VMM that is killed while its guest's device writes to memory, and a guest that panics.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::host::devices::DISK;

use super::pci::{self, HostDisk};
use super::{FOR_DISKS, stage, start};

/// Writes to its disk and reads from it without an end; interrupts come by the line, as the kernel's command line has it.
const WORKS: &str = "until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
     grep nvme0q /proc/interrupts
     echo interrupts by $(grep nvme0q /proc/interrupts | head -n 1)
     dd if=/dev/nvme0n1 of=/dev/null bs=1M iflag=direct 2>/dev/null && echo works
     while :; do dd if=/dev/zero of=/dev/nvme0n1 bs=64k count=256 oflag=direct conv=notrunc 2>/dev/null || echo io failed; done &
     while :; do dd if=/dev/nvme0n1 of=/dev/null bs=64k count=256 iflag=direct 2>/dev/null || echo io failed; done &
     sleep 1; echo busy; ";

fn cmdline(more: &str) -> String {
    format!("{} {more}", super::guest::COMMAND_LINE)
}

#[test]
fn a_device_is_the_hosts_again_whenever_its_vmm_is_killed() {
    let Some(stage) = stage() else { return };
    pci::give(DISK, Some("vfio-pci"));
    let device = format!("--device={DISK}");
    // By the interrupt line: what is left when messages are not to be.
    let cmdline = cmdline("pci=nomsi");
    let script = format!("{WORKS} while :; do sleep 1; done");
    let vm = start(FOR_DISKS, &script, &["--cmdline", &cmdline, &device]);
    let by = vm.says("interrupts by ");
    assert!(by.contains("IO-APIC"), "{by}");
    vm.says("works");
    vm.says("busy");
    let id = Pid::from_raw(vm.id().cast_signed());
    kill(id, Signal::SIGKILL).unwrap();
    assert!(!vm.said().contains("io failed"), "{}", vm.said());
    vm.ends(137);
    HostDisk::take(DISK).works();
    stage.leaves_nothing();
}

#[test]
fn a_device_is_the_hosts_again_when_its_guest_panics() {
    let Some(stage) = stage() else { return };
    pci::give(DISK, Some("vfio-pci"));
    let device = format!("--device={DISK}");
    let script = format!("load pvpanic_mmio; {WORKS} echo c >/proc/sysrq-trigger");
    let vm = start(FOR_DISKS, &script, &[&device]);
    vm.says("busy");
    vm.ends(5);
    HostDisk::take(DISK).works();
    stage.leaves_nothing();
}
