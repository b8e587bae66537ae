//! Devices that come and go while the guest works.

mod common;
mod guest;

use std::fs;

use common::stage;
use guest::held::Held;
use guest::tap::Tap;
use guest::vm::Vm;
use guest::{Guest, Kernel, control};
use orlop_proto::vmm::v1::ResetRequest;
use orlop_testbed::stories::size;
use tonic::{Code, Status};

/// A guest that tells of each device that comes and goes, and works on its first disk all the time.
fn start(kernel: Kernel) -> Vm {
    let script = "load virtio_blk; load virtio_net; mkdir /dev/ram; mount -t tmpfs ram /dev/ram; \
                      echo '#!/bin/sh' >/tell; chmod +x /tell; \
                      echo 'case $SUBSYSTEM-$ACTION in block-*|net-add|net-remove) echo saw $ACTION ${DEVPATH##*/};; esac' >>/tell; \
                      uevent /tell & \
                      sleep 1; echo the guest works; round=0; \
                      while :; do \
                      head -c 262144 /dev/urandom >/dev/ram/data; \
                      dd if=/dev/ram/data of=/dev/vda bs=64k conv=fsync,notrunc 2>/dev/null || echo io failed; \
                      echo 3 >/proc/sys/vm/drop_caches; \
                      head -c 262144 /dev/vda | cmp - /dev/ram/data || echo io differs; \
                      round=$((round + 1)); echo io $round; sleep 0.1; done";
    let guest = Guest::new(kernel, script);
    let image = guest.path("first");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let disk = format!("path={}", image.display());
    let vm = Vm::start(guest, &["--disk", &disk]);
    vm.until("the guest works", || vm.said().contains("io 1\r"));
    vm
}

/// How often the guest has said that it saw this.
fn saw(vm: &Vm, what: &str) -> usize {
    vm.said().matches(&format!("saw {what}\r")).count()
}

#[test]
fn a_disk_and_a_card_come_and_go_many_times_while_the_guest_works() {
    let Some(stage) = stage() else { return };
    let rounds = size(15, 100) as usize;
    let vm = start(Kernel::Vmlinux);
    fs::write(vm.guest.path("hot"), vec![7; 1 << 20]).unwrap();
    let tap = Tap::new(1);
    let mut before = None;
    for round in 1..=rounds {
        let (disk, card) = (vm.add_disk("hot").unwrap(), vm.add_net(&tap).unwrap());
        assert_ne!(disk, card);
        vm.until("the guest has both", || {
            (saw(&vm, "add vdb"), saw(&vm, "add eth0")) == (round, round)
        });
        vm.remove(&disk).unwrap();
        vm.remove(&card).unwrap();
        assert_eq!(vm.devices(), 3, "the first disk, randomness, the balloon");
        // What the first rounds need for the first time is no growth.
        if round == 10 {
            before = Some(Held::by_vmm(vm.id()));
        }
    }
    vm.until("the guest has seen all of it go", || {
        (saw(&vm, "remove vdb"), saw(&vm, "remove eth0")) == (rounds, rounds)
    });
    let (before, after) = (before.unwrap(), Held::by_vmm(vm.id()));
    println!("after 10 rounds {before:?}, after {rounds} {after:?}");
    assert_eq!(after.threads, before.threads);
    assert_eq!(after.descriptors, before.descriptors);
    assert!(after.kib < before.kib + 256, "memory grows");
    let said = vm.said();
    assert!(
        !said.contains("io failed") && !said.contains("io differs"),
        "{said}"
    );
    vm.kill();
    drop(tap);
    stage.leaves_nothing();
}

#[test]
fn what_cannot_come_or_go_is_told_with_a_reason() {
    let Some(stage) = stage() else { return };
    let vm = start(Kernel::Own);
    let refused = |result: Result<String, Status>, code, words| {
        let status = result.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    };
    refused(vm.add_disk("missing"), Code::FailedPrecondition, "missing");
    // The guest's first disk is locked by the guest itself.
    refused(vm.add_disk("first"), Code::FailedPrecondition, "first");
    let none = vm.remove("0000:00:1e.0").map(|()| String::new());
    refused(none, Code::NotFound, "orlop inspect");
    // A disk that came while the guest ran is there after a reset, too, and at its address, though one before it has gone.
    let [gone, disk] = ["gone", "hot"].map(|name| {
        fs::write(vm.guest.path(name), vec![7; 1 << 20]).unwrap();
        vm.add_disk(name).unwrap()
    });
    vm.until("the guest has both", || saw(&vm, "add vdc") == 1);
    vm.remove(&gone).unwrap();
    vm.until("the guest has seen one go", || saw(&vm, "remove vdb") == 1);
    control(&vm.socket(), async |mut vm| vm.reset(ResetRequest {}).await).unwrap();
    vm.until("the guest has booted again", || {
        vm.said().matches("io 1\r").count() == 2
    });
    vm.remove(&disk).unwrap();
    vm.until("the guest has seen it go", || saw(&vm, "remove vdb") == 2);
    vm.kill();
    stage.leaves_nothing();
}
