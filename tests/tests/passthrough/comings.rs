//! A device that comes and goes while its guest works with it.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Instant;

use orlop_proto::vmm::v1::{AddHostDeviceRequest, DescribeRequest, SetBalloonRequest};
use orlop_testbed::host::devices::DISK;
use orlop_testbed::stories::size;
use tonic::{Code, Status};

use super::guest::control;
use super::guest::held::Held;
use super::guest::vm::Vm;
use super::pci::{self, HostDisk};
use super::{FOR_DISKS, stage, start};

/// Reads from its disk without an end, and says each time whether there was one.
const READS: &str = "while :; do
       if [ -b /dev/nvme0n1 ] && dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null; then echo read; else echo nothing; fi
       sleep 0.05
     done";

fn add(vm: &Vm, address: &str) -> Result<String, Status> {
    let added = control(&vm.socket(), async |mut vm| {
        vm.add_host_device(AddHostDeviceRequest {
            address: address.into(),
            id: "disk".into(),
        })
        .await
    });
    Ok(added?.address)
}

#[test]
fn a_disk_comes_and_goes_many_times_while_its_guest_works_with_it() {
    let Some(stage) = stage() else { return };
    let rounds = size(6, 20) as usize;
    pci::give(DISK, Some("vfio-pci"));
    // In a guest that works with it, the disk goes in the middle of that.
    let script = format!("echo ready; {READS}");
    let vm = start(FOR_DISKS, &script, &["--memory", "256M,max=512M"]);
    vm.says("ready");
    let reads = || vm.said().matches("\nread\r").count();
    let mut before = None;
    let (mut coming, mut going) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let began = Instant::now();
        let address = add(&vm, DISK).unwrap();
        coming.push(began.elapsed());
        let read = reads();
        vm.until("the guest reads", || reads() > read + 1);
        if round == 1 {
            refuses(&vm);
        }
        let began = Instant::now();
        vm.remove(&address).unwrap();
        going.push(began.elapsed());
        // What the first rounds need for the first time is no growth.
        if round == 3 {
            before = Some(Held::by_vmm(vm.id()));
        }
    }
    let (before, after) = (before.unwrap(), Held::by_vmm(vm.id()));
    println!("after 3 rounds {before:?}, after {rounds} {after:?}");
    for (what, times) in [("comes", &mut coming), ("goes", &mut going)] {
        times.sort_unstable();
        println!("it {what} in {:?} (median of {rounds})", times[rounds / 2]);
    }
    assert_eq!(after.threads, before.threads);
    assert_eq!(after.descriptors, before.descriptors);
    vm.kill();
    HostDisk::take(DISK).works();
    stage.leaves_nothing();
}

#[test]
fn a_disk_that_the_host_wants_back_is_let_go_of_and_its_guest_lives() {
    let Some(stage) = stage() else { return };
    pci::give(DISK, Some("vfio-pci"));
    let vm = start(FOR_DISKS, READS, &[&format!("--device={DISK},id=disk")]);
    vm.says("read");
    // The kernel waits for the VMM, and whoever writes here for the kernel.
    let removes = std::thread::spawn(|| fs::write(pci::path(DISK).join("remove"), "1"));
    vm.until("the host has it back", || removes.is_finished());
    removes.join().unwrap().unwrap();
    assert!(!pci::is_there(DISK));
    let nothing = || vm.said().matches("\nnothing\r").count();
    let before = nothing();
    vm.until("the guest goes on without it", || nothing() > before + 1);
    let described = control(&vm.socket(), async |mut vm| {
        vm.describe(DescribeRequest {}).await
    });
    let devices = described.unwrap().devices;
    assert!(
        devices.iter().all(|device| device.kind != "vfio-pci"),
        "{devices:?}"
    );
    fs::write("/sys/bus/pci/rescan", "1").unwrap();
    vm.until("the host finds it again", || pci::is_there(DISK));
    HostDisk::take(DISK).works();
    // And it can be given away again.
    pci::give(DISK, Some("vfio-pci"));
    add(&vm, DISK).unwrap();
    let reads = || vm.said().matches("\nread\r").count();
    let before = reads();
    vm.until("the guest reads again", || reads() > before + 1);
    vm.kill();
    HostDisk::take(DISK).works();
    stage.leaves_nothing();
}

#[test]
fn a_disk_that_somebody_else_opened_is_the_hosts_again_when_its_guest_lets_go() {
    let Some(stage) = stage() else { return };
    pci::give(DISK, Some("vfio-pci"));
    // A group is open once at a time: that the VM has it shows that it has not opened it itself.
    let [device, iommu] = pci::open_for_children(DISK);
    let files = format!("fd={},iommu={}", device.as_raw_fd(), iommu.as_raw_fd());
    let vm = start(FOR_DISKS, READS, &[&format!("--device={DISK},{files}")]);
    drop((device, iommu));
    vm.says("read");
    let described = control(&vm.socket(), async |mut vm| {
        vm.describe(DescribeRequest {}).await
    });
    let devices = described.unwrap().devices;
    let disk = devices.iter().find(|device| device.kind == "vfio-pci");
    vm.remove(&disk.expect("a device of the host's").address)
        .unwrap();
    assert!(!pci::is_open(DISK, vm.id()), "the VM keeps it open");
    HostDisk::take(DISK).works();
    vm.kill();
    stage.leaves_nothing();
}

/// What a VM with a device of the host's cannot have.
fn refuses(vm: &Vm) {
    let twice = add(vm, DISK).unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    assert!(twice.message().contains("already"), "{twice}");
    let balloon = control(&vm.socket(), async |mut vm| {
        vm.set_balloon(SetBalloonRequest { bytes: 64 << 20 }).await
    });
    let balloon = balloon.unwrap_err();
    assert!(balloon.message().contains("stays where it is"), "{balloon}");
    let described = control(&vm.socket(), async |mut vm| {
        vm.describe(DescribeRequest {}).await
    });
    let devices = described.unwrap().devices;
    let disk = devices.iter().find(|device| device.kind == "vfio-pci");
    let disk = disk.expect("a device of the host's");
    assert_eq!(disk.tag, "disk");
    assert_eq!(disk.counters["pinned_bytes"], 256 << 20, "{disk:?}");
    assert!(disk.counters["interrupt_vectors"] >= 2, "{disk:?}");
}
