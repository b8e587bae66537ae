//! Devices that come and go while the guest works.

mod common;
mod guest;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::stage;
use guest::held::Held;
use guest::tap::Tap;
use guest::{Guest, Kernel, LIMIT, control};
use orlop_proto::vmm::v1::{
    AddDiskRequest, AddNetRequest, DescribeRequest, KillRequest, RemoveDeviceRequest, ResetRequest,
    WaitOperationRequest,
};
use orlop_testbed::containerd::ctr::Running;
use orlop_testbed::stories::size;
use tonic::{Code, Status};

/// A guest, its VMM, and what it has said.
struct Vm {
    guest: Guest,
    running: Running,
}

impl Vm {
    /// A guest that tells of each device that comes and goes, and works on its first disk all the time.
    fn start(kernel: Kernel) -> Self {
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
        let running = guest.start(&[
            "--console",
            &format!("file={}", guest.path("console").display()),
            "--api-socket",
            guest.path("control").to_str().unwrap(),
            "--disk",
            &format!("path={}", image.display()),
        ]);
        let vm = Vm { guest, running };
        vm.until("the guest works", || vm.said().contains("io 1\r"));
        vm
    }

    fn socket(&self) -> PathBuf {
        self.guest.path("control")
    }

    fn said(&self) -> String {
        let console = fs::read(self.guest.path("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Waits until something holds; the console tells why it does not.
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds() {
            assert!(Instant::now() < end, "{what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often the guest has said so.
    fn saw(&self, what: &str) -> usize {
        self.said().matches(&format!("saw {what}\r")).count()
    }

    fn add_disk(&self, name: &str) -> Result<String, Status> {
        let path = self.guest.path(name);
        let added = control(&self.socket(), async |mut vm| {
            vm.add_disk(AddDiskRequest {
                path: path.to_str().unwrap().into(),
                readonly: false,
                serial: "hot".into(),
                ..Default::default()
            })
            .await
        });
        Ok(added?.address)
    }

    fn add_net(&self, tap: &Tap) -> Result<String, Status> {
        let added = control(&self.socket(), async |mut vm| {
            let tap = tap.name.clone();
            vm.add_net(AddNetRequest {
                tap,
                ..Default::default()
            })
            .await
        });
        Ok(added?.address)
    }

    fn remove(&self, address: &str) -> Result<(), Status> {
        control(&self.socket(), async |mut vm| {
            let begun = vm
                .remove_device(RemoveDeviceRequest {
                    address: address.into(),
                    timeout_ms: LIMIT.as_millis().try_into().unwrap(),
                })
                .await?;
            let id = begun.into_inner().id;
            vm.wait_operation(WaitOperationRequest { id }).await
        })
        .map(drop)
    }

    fn devices(&self) -> usize {
        control(&self.socket(), async |mut vm| {
            vm.describe(DescribeRequest {}).await
        })
        .unwrap()
        .devices
        .len()
    }

    fn kill(self) {
        // The answer may be lost with the VM.
        let _ = control(&self.socket(), async |mut vm| vm.kill(KillRequest {}).await);
        assert_eq!(self.running.wait(LIMIT).unwrap().status, 137);
    }
}

#[test]
fn a_disk_and_a_card_come_and_go_many_times_while_the_guest_works() {
    let Some(stage) = stage() else { return };
    let rounds = size(15, 100) as usize;
    let vm = Vm::start(Kernel::Vmlinux);
    fs::write(vm.guest.path("hot"), vec![7; 1 << 20]).unwrap();
    let tap = Tap::new(1);
    let mut before = None;
    for round in 1..=rounds {
        let (disk, card) = (vm.add_disk("hot").unwrap(), vm.add_net(&tap).unwrap());
        assert_ne!(disk, card);
        vm.until("the guest has both", || {
            (vm.saw("add vdb"), vm.saw("add eth0")) == (round, round)
        });
        vm.remove(&disk).unwrap();
        vm.remove(&card).unwrap();
        assert_eq!(vm.devices(), 3, "the first disk, randomness, the balloon");
        // What the first rounds need for the first time is no growth.
        if round == 10 {
            before = Some(Held::by_vmm(vm.running.id()));
        }
    }
    vm.until("the guest has seen all of it go", || {
        (vm.saw("remove vdb"), vm.saw("remove eth0")) == (rounds, rounds)
    });
    let (before, after) = (before.unwrap(), Held::by_vmm(vm.running.id()));
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
    let vm = Vm::start(Kernel::Own);
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
    vm.until("the guest has both", || vm.saw("add vdc") == 1);
    vm.remove(&gone).unwrap();
    vm.until("the guest has seen one go", || vm.saw("remove vdb") == 1);
    control(&vm.socket(), async |mut vm| vm.reset(ResetRequest {}).await).unwrap();
    vm.until("the guest has booted again", || {
        vm.said().matches("io 1\r").count() == 2
    });
    vm.remove(&disk).unwrap();
    vm.until("the guest has seen it go", || vm.saw("remove vdb") == 2);
    vm.kill();
    stage.leaves_nothing();
}
