//! The control interface over a VM whose guest is not there: every call in every state, and clients of all kinds.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use orlop_proto::connect;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use orlop_proto::vmm::v1::{self as api, EventKind, VmState};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use super::bays::Wiring;
use super::*;
use crate::bus::Device as _;
use crate::config::{BalloonConfig, KernelConfig};
use crate::devices::pci_hotplug::{EJECT, PciHotplug};
use crate::devices::virtio::test_driver::ram;
use crate::devices::virtio::transport::test_wires::Wires;

/// Longer than anything here takes, unless it hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// A VM without a guest, whose controller runs.
struct Bench {
    /// What the guest would let go of devices by.
    hotplug: Arc<PciHotplug>,
    directory: tempfile::TempDir,
    console: Arc<console::Console>,
    controller: Controller,
    ended: JoinHandle<Outcome>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (controller, messages) = mpsc::channel();
        let news = News::default();
        let (console, writer) = console::Console::open(&ConsoleConfig::Null).unwrap();
        let listener = socket::listen(&directory.path().join("vm.sock")).unwrap();
        let weak = Arc::downgrade(&console);
        let server = Server::start(listener, controller.clone(), news.clone(), weak).unwrap();
        let controller_of_vm = controller.clone();
        let mut machine = machine(&EndOfLife::new(controller.clone(), 0));
        let hotplug = machine.bays.registers();
        let held = console.clone();
        let ended = std::thread::spawn(move || {
            let vm = Vm {
                config: config(),
                controller: controller_of_vm,
                news,
                ready: None,
                life: 1,
                front: None,
                paths: Vec::new(),
            };
            machine.gate.set(Phase::Running);
            let outcome = vm.control(&mut machine, 0, &messages);
            machine.end();
            vm.news.tell(Happening::Ended(outcome.clone()));
            drop(held);
            server.stop(outcome.clone());
            // By then the console's last holder is the test, which may still listen.
            drop(writer);
            outcome
        });
        Bench {
            hotplug,
            directory,
            console,
            controller,
            ended,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("vm.sock")
    }

    async fn client(&self) -> VmmClient<Channel> {
        VmmClient::new(connect::unix(self.socket()).await.unwrap())
    }

    fn kill(self) -> Outcome {
        self.controller.send(Message::Kill).unwrap();
        self.ended.join().unwrap()
    }
}

fn config() -> VmConfig {
    VmConfig {
        name: "bench".parse().unwrap(),
        kernel: KernelConfig {
            kernel: PathBuf::new(),
            initramfs: None,
            cmdline: String::new(),
        },
        vcpus: "2".parse().unwrap(),
        memory: "64M".parse().unwrap(),
        disks: Vec::new(),
        nets: Vec::new(),
        console: ConsoleConfig::Null,
        reboot: true,
        api_socket: None,
        vsock: None,
        fs: Vec::new(),
        balloon: BalloonConfig::Off,
    }
}

fn machine(end: &EndOfLife) -> Machine {
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let wires = Wires::new();
    let wiring = Wiring {
        ram: ram(1 << 20),
        msi: wires.clone(),
        ioevents: wires,
    };
    Machine {
        gate: Arc::new(Gate::new()),
        vcpus: Vec::new(),
        bays: Bays::new(wiring, event(), DeviceNumber::up_to(4), end),
        power_button: event(),
    }
}

/// A test's story, which must not hang.
fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(LIMIT, story).await })
        .expect("it hangs")
}

/// A call, in a state.
#[derive(Clone, Copy, Debug)]
enum Verb {
    Describe,
    Pause,
    Resume,
    PowerButton,
    Reset,
    Kill,
    Events,
    Console,
    /// Of a file that is not there.
    AddDisk,
    /// By a name that no interface has.
    AddNet,
    /// Where none is.
    RemoveDevice,
    /// Which the VM does not have.
    SetBalloon,
}

/// What a call comes to.
#[derive(Debug, PartialEq)]
enum Then {
    /// The VM is in this state.
    Is(VmState),
    /// The VM has ended.
    Ended(Outcome),
    /// The call is refused, and nothing has changed.
    Refused(Code),
}

fn disk(path: &str) -> api::AddDiskRequest {
    api::AddDiskRequest {
        path: path.into(),
        readonly: true,
        serial: String::new(),
    }
}

fn removal(address: &str) -> api::RemoveDeviceRequest {
    api::RemoveDeviceRequest {
        address: address.into(),
        timeout_ms: 100,
    }
}

async fn call(client: &mut VmmClient<Channel>, verb: Verb) -> Result<(), tonic::Status> {
    match verb {
        Verb::Describe => client.describe(api::DescribeRequest {}).await.map(drop),
        Verb::Pause => client.pause(api::PauseRequest {}).await.map(drop),
        Verb::Resume => client.resume(api::ResumeRequest {}).await.map(drop),
        Verb::PowerButton => client.shutdown(api::ShutdownRequest {}).await.map(drop),
        Verb::Reset => client.reset(api::ResetRequest {}).await.map(drop),
        Verb::Kill => client.kill(api::KillRequest {}).await.map(drop),
        Verb::AddDisk => client.add_disk(disk("/nonexistent")).await.map(drop),
        Verb::AddNet => {
            let tap = "a/b".to_owned();
            let request = api::AddNetRequest {
                tap,
                ..Default::default()
            };
            client.add_net(request).await.map(drop)
        }
        Verb::SetBalloon => {
            let bytes = 1 << 20;
            let request = api::SetBalloonRequest { bytes };
            client.set_balloon(request).await.map(drop)
        }
        Verb::RemoveDevice => client.remove_device(removal("00:1f.0")).await.map(drop),
        Verb::Events => client.events(api::EventsRequest {}).await.map(drop),
        Verb::Console => {
            let silent = tokio_stream::empty();
            client.console(silent).await.map(drop)
        }
    }
}

#[test]
fn every_call_in_every_state() {
    use Then::{Ended, Is, Refused};
    use VmState::{Paused, Running};
    let table = [
        (Running, Verb::Describe, Is(Running)),
        (Running, Verb::Pause, Is(Paused)),
        (Running, Verb::Resume, Is(Running)),
        (Running, Verb::PowerButton, Is(Running)),
        (Running, Verb::Reset, Ended(Outcome::Reset)),
        (Running, Verb::Kill, Ended(Outcome::Killed)),
        (Running, Verb::Events, Is(Running)),
        (Running, Verb::Console, Is(Running)),
        (Running, Verb::AddDisk, Refused(Code::FailedPrecondition)),
        (Running, Verb::AddNet, Refused(Code::InvalidArgument)),
        (Running, Verb::RemoveDevice, Refused(Code::NotFound)),
        (Running, Verb::SetBalloon, Refused(Code::FailedPrecondition)),
        (Paused, Verb::SetBalloon, Refused(Code::FailedPrecondition)),
        (Paused, Verb::Describe, Is(Paused)),
        (Paused, Verb::Pause, Is(Paused)),
        (Paused, Verb::Resume, Is(Running)),
        (Paused, Verb::PowerButton, Refused(Code::FailedPrecondition)),
        (Paused, Verb::Reset, Ended(Outcome::Reset)),
        (Paused, Verb::Kill, Ended(Outcome::Killed)),
        (Paused, Verb::Events, Is(Paused)),
        (Paused, Verb::Console, Is(Paused)),
        (Paused, Verb::AddDisk, Refused(Code::FailedPrecondition)),
        (Paused, Verb::AddNet, Refused(Code::InvalidArgument)),
        (
            Paused,
            Verb::RemoveDevice,
            Refused(Code::FailedPrecondition),
        ),
    ];
    for (state, verb, then) in table {
        let bench = Bench::new();
        let (answer, client) = run(async {
            let mut client = bench.client().await;
            if state == Paused {
                call(&mut client, Verb::Pause).await.unwrap();
            }
            (call(&mut client, verb).await, client)
        });
        if let Ended(outcome) = then {
            assert_eq!(bench.ended.join().unwrap(), outcome, "{state:?} {verb:?}");
            continue;
        }
        let now = run(async {
            let mut client = bench.client().await;
            let answer = client.describe(api::DescribeRequest {}).await.unwrap();
            answer.into_inner().state()
        });
        let came = match answer {
            Ok(()) => Is(now),
            Err(status) => {
                assert_eq!(now, state, "{verb:?} was refused and has changed something");
                Refused(status.code())
            }
        };
        assert_eq!(came, then, "{state:?} {verb:?}");
        drop(client);
        bench.kill();
    }
}

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
        let keeps = client.remove_device(removal("0000:00:01.0")).await;
        assert_eq!(keeps.unwrap_err().code(), Code::DeadlineExceeded);
        let removed = client.remove_device(removal("00:01.0"));
        let let_go = async { bench.hotplug.write(EJECT.into(), &2u32.to_le_bytes()) };
        let (removed, ()) = tokio::join!(removed, let_go);
        // The guest may have let go of it before the second request came.
        if let Err(status) = removed {
            assert_eq!(status.code(), Code::NotFound);
        }
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
