//! The control interface over a VM whose guest is not there: every call in every state, and clients of all kinds.

mod bench;
mod states;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use orlop_proto::connect;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use orlop_proto::vmm::v1::{self as api, EventKind};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use self::bench::{Bench, Verb, call, disk, removal, run};
use super::*;
use crate::bus::Device as _;
use crate::config::{ConsoleConfig, ConsoleDevice};
use crate::devices::pci_hotplug::EJECT;
use crate::devices::virtio::Device as _;

#[test]
fn calls_to_a_vm_that_has_ended_end_as_well() {
    let bench = Bench::new();
    let answers = run(async {
        let mut client = bench.client().await;
        call(&mut client, Verb::Describe).await.unwrap();
        bench.controller.send(Message::Kill).unwrap();
        let waited = client.wait(api::WaitRequest {}).await;
        let mut answers = Vec::new();
        for verb in [Verb::Describe, Verb::Pause, Verb::Kill, Verb::Console] {
            answers.push(call(&mut client, verb).await);
        }
        assert_eq!(waited.unwrap().into_inner().outcome(), api::Outcome::Killed);
        answers
    });
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert_eq!(bench.ended.join().unwrap(), Outcome::Killed);
}

#[test]
fn what_happens_is_told_in_order_to_the_end() {
    let bench = Bench::new();
    let kinds = run(async {
        let mut client = bench.client().await;
        let mut events = client
            .events(api::EventsRequest {})
            .await
            .unwrap()
            .into_inner();
        for verb in [
            Verb::Pause,
            Verb::Pause,
            Verb::Resume,
            Verb::PowerButton,
            Verb::Kill,
        ] {
            call(&mut client, verb).await.unwrap();
        }
        let mut kinds = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            assert!(event.unix_ms > 0 && !event.message.is_empty());
            kinds.push(event.kind());
        }
        kinds
    });
    assert_eq!(
        kinds,
        [
            EventKind::Paused,
            EventKind::Resumed,
            EventKind::PowerButton,
            EventKind::Ended
        ]
    );
}

#[test]
fn a_disk_comes_and_goes_when_the_guest_lets_it() {
    let bench = Bench::new();
    let image = bench.directory.path().join("image");
    std::fs::write(&image, [0; 4096]).unwrap();
    let kinds = run(async {
        let mut client = bench.client().await;
        let mut events = client
            .events(api::EventsRequest {})
            .await
            .unwrap()
            .into_inner();
        let image = image.to_str().unwrap();
        let added = client.add_disk(disk(image)).await.unwrap().into_inner();
        assert_eq!(added.address, "0000:00:01.0");
        let mut other = bench.client().await;
        let described = other.describe(api::DescribeRequest {}).await.unwrap();
        let devices = described.into_inner().devices;
        assert_eq!(devices[0].kind, "virtio-blk");
        let relative = client.add_disk(disk("image")).await.unwrap_err();
        assert_eq!(relative.code(), Code::InvalidArgument);
        let begun = client.remove_device(removal("0000:00:01.0")).await;
        let id = begun.unwrap().into_inner().id;
        let keeps = other.wait_operation(api::WaitOperationRequest { id }).await;
        assert_eq!(keeps.unwrap_err().code(), Code::DeadlineExceeded);
        let begun = client.remove_device(removal("00:01.0")).await;
        let id = begun.unwrap().into_inner().id;
        bench.hotplug.write(EJECT.into(), &2u32.to_le_bytes());
        let gone = other.wait_operation(api::WaitOperationRequest { id }).await;
        assert!(gone.unwrap().into_inner().done);
        call(&mut client, Verb::Kill).await.unwrap();
        let mut kinds = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            kinds.push(event.kind());
        }
        kinds
    });
    assert_eq!(
        kinds,
        [
            EventKind::DeviceAdded,
            EventKind::DeviceRemoved,
            EventKind::Ended
        ]
    );
    // The image is nobody's any more.
    let writable = std::fs::File::options().write(true).open(&image).unwrap();
    writable.try_lock().unwrap();
}

#[test]
fn a_disk_that_is_handed_over_need_not_be_found() {
    let bench = Bench::new();
    let image = bench.directory.path().join("image");
    std::fs::write(&image, [0; 512]).unwrap();
    let open = |write| {
        std::fs::File::options()
            .read(true)
            .write(write)
            .open(&image)
    };
    let (reading, both) = (open(false).unwrap(), open(true).unwrap());
    std::fs::remove_file(&image).unwrap();
    run(async {
        let (channel, files) = connect::unix_with_files(bench.socket()).await.unwrap();
        let mut client = VmmClient::new(channel);
        let handed_over = |readonly| api::AddDiskRequest {
            readonly,
            file: true,
            ..Default::default()
        };
        let nothing = client.add_disk(handed_over(true)).await.unwrap_err();
        assert_eq!(nothing.code(), Code::InvalidArgument);
        assert!(nothing.message().contains("1 files"), "{nothing}");
        files.push(reading.into());
        let too_little = client.add_disk(handed_over(false)).await.unwrap_err();
        assert_eq!(too_little.code(), Code::FailedPrecondition);
        files.push(both.try_clone().unwrap().into());
        let both_ways = api::AddDiskRequest {
            path: "/image".into(),
            ..handed_over(false)
        };
        let twice = client.add_disk(both_ways).await.unwrap_err();
        assert_eq!(twice.code(), Code::InvalidArgument);
        files.push(both.into());
        let added = client.add_disk(handed_over(false)).await.unwrap();
        assert_eq!(added.into_inner().address, "0000:00:01.0");
        let no_tap = api::AddNetRequest {
            files: 17,
            ..Default::default()
        };
        let too_many = client.add_net(no_tap).await.unwrap_err();
        assert_eq!(too_many.code(), Code::InvalidArgument);
    });
    assert_eq!(bench.kill(), Outcome::Killed);
}

#[test]
fn slots_that_are_full_take_no_more() {
    let bench = Bench::new();
    let image = bench.directory.path().join("image");
    std::fs::write(&image, [0; 512]).unwrap();
    run(async {
        let mut client = bench.client().await;
        let image = image.to_str().unwrap();
        for _ in 0..4 {
            client.add_disk(disk(image)).await.unwrap();
        }
        let status = client.add_disk(disk(image)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
    });
    bench.kill();
}

#[test]
fn a_console_has_many_users() {
    let bench = Bench::new();
    for byte in b"login: " {
        bench.console.write(0, &[*byte]);
    }
    run(async {
        let mut users = Vec::new();
        for _ in 0..2 {
            let (keys, typed) = tokio::sync::mpsc::channel(1);
            let stream = ReceiverStream::new(typed);
            let shown = bench.client().await.console(stream).await.unwrap();
            users.push((keys, shown.into_inner()));
        }
        for (_, shown) in &mut users {
            let mut text = Vec::new();
            while text != b"login: " {
                text.extend(shown.message().await.unwrap().unwrap().data);
            }
        }
        let (keys, _) = users.first().unwrap();
        let data = b"root".to_vec();
        keys.send(api::ConsoleInput { data }).await.unwrap();
        // What was typed is in the port's FIFO: line status, data ready.
        let ready = || {
            let mut status = [0];
            bench.console.read(5, &mut status);
            status[0] & 1 == 1
        };
        while !ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut typed = Vec::new();
        while typed.len() < 4 {
            if ready() {
                let mut byte = [0];
                bench.console.read(0, &mut byte);
                typed.extend(byte);
            }
        }
        assert_eq!(typed, b"root");
    });
    bench.kill();
}

#[test]
fn a_console_is_as_large_as_the_last_client_says() {
    let bench = Bench::with_console(ConsoleDevice::Virtio);
    let hvc = bench.console.hvc().unwrap();
    run(async {
        let mut client = bench.client().await;
        let mut other = bench.client().await;
        let size = |width, height| api::ResizeConsoleRequest { width, height };
        client.resize_console(size(80, 25)).await.unwrap();
        other.resize_console(size(132, 50)).await.unwrap();
        assert_eq!(*hvc.config(), [132, 0, 50, 0]);
        for wrong in [size(1 << 16, 1), size(1, u32::MAX)] {
            let status = client.resize_console(wrong).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
        }
        call(&mut client, Verb::Pause).await.unwrap();
        client
            .resize_console(size(u16::MAX.into(), 0))
            .await
            .unwrap();
        assert_eq!(*hvc.config(), [255, 255, 0, 0]);
    });
    bench.kill();
}

#[test]
fn what_is_typed_for_a_guest_that_was_reset_is_not_for_the_next() {
    let (console, _writer) =
        console::Console::open(&ConsoleConfig::Null, ConsoleDevice::Virtio).unwrap();
    assert!(console.feed(b"rm -rf /\n").is_empty());
    console.reset();
    let full = vec![b'x'; 1 << 20];
    let held_back = console.feed(&full).len();
    console.reset();
    assert_eq!(console.feed(&full).len(), held_back);
}

#[test]
fn garbage_and_clients_that_go_are_nothing_to_others() {
    let bench = Bench::new();
    let mut garbage = UnixStream::connect(bench.socket()).unwrap();
    // It is closed in the middle of that, and then nobody takes the rest.
    let _ = garbage.write_all(&[0xa5; 1 << 20]);
    let silent = UnixStream::connect(bench.socket()).unwrap();
    run(async {
        let mut goes = bench.client().await;
        let wait = goes.wait(api::WaitRequest {});
        assert!(
            tokio::time::timeout(Duration::from_millis(50), wait)
                .await
                .is_err()
        );
        drop(goes);
        let (mut one, mut other) = (bench.client().await, bench.client().await);
        for _ in 0..20 {
            let (a, b) = tokio::join!(call(&mut one, Verb::Pause), call(&mut other, Verb::Resume));
            a.unwrap();
            b.unwrap();
        }
    });
    assert_eq!(bench.kill(), Outcome::Killed);
    drop(silent);
}
