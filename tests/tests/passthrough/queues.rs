//! A disk that all of its guest's processors use at once, each by a queue and an interrupt of its own.

use std::path::PathBuf;

use orlop_testbed::host::devices::DISK;
use orlop_testbed::stories::size;

use super::guest::Guest;
use super::guest::vm::Vm;
use super::pci::{self, HostDisk};
use super::{FOR_DISKS, stage};

#[test]
fn each_processor_of_a_guest_writes_and_verifies_by_a_queue_of_its_own() {
    let Some(stage) = stage() else { return };
    pci::give(DISK, Some("vfio-pci"));
    let processors = size(4, 8);
    let script = format!(
        "until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
         fio --name=verify --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --size=256k --offset_increment=1m --direct=1 \
             --ioengine=psync --numjobs={processors} --cpus_allowed=0-{last} --cpus_allowed_policy=split --thread \
             --verify=crc32c --verify_fatal=1 --group_reporting --minimal >/dev/null && echo verified
         for queue in $(seq {processors}); do
           echo queue $queue $(grep \" nvme0q$queue$\" /proc/interrupts | awk '{{ for (i = 2; i <= {processors} + 1; i++) n += $i }} END {{ print n }}')
         done
         echo counted; poweroff -f",
        last = processors - 1,
    );
    let fio = PathBuf::from("/usr/bin/fio");
    let guest = Guest::with(FOR_DISKS, &script, &[fio]);
    let (cpus, device) = (format!("--cpus={processors}"), format!("--device={DISK}"));
    // fio comes with some eighty megabytes of libraries.
    let vm = Vm::start(guest, &[&cpus, "--memory", "1G", &device]);
    vm.says("counted");
    let said = vm.said();
    assert!(said.contains("verified\r"), "{said}");
    let interrupts: Vec<u64> = said
        .lines()
        .filter_map(|line| line.strip_prefix("queue "))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect();
    println!("interrupts of each queue: {interrupts:?}");
    assert_eq!(interrupts.len() as u64, processors, "{said}");
    assert!(interrupts.iter().all(|&count| count > 0), "{said}");
    vm.ends(0);
    HostDisk::take(DISK).works();
    stage.leaves_nothing();
}
