//! A VM whose guest is not there, and the calls that are made to it.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use orlop_proto::connect;
use orlop_proto::vmm::v1 as api;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use tonic::transport::Channel;

use crate::config::{BalloonConfig, ConsoleConfig, ConsoleDevice, HostFile, KernelConfig};
use crate::devices::pci_hotplug::PciHotplug;
use crate::devices::virtio::test_driver::ram;
use crate::devices::virtio::transport::test_wires::Wires;
use crate::pci::DeviceNumber;
use crate::vm::bays::Wiring;
use crate::vm::*;

/// Longer than anything here takes, unless it hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// A VM without a guest, whose controller runs.
pub(super) struct Bench {
    /// What the guest would let go of devices by.
    pub(super) hotplug: Arc<PciHotplug>,
    pub(super) directory: tempfile::TempDir,
    pub(super) console: Arc<console::Console>,
    pub(super) controller: Controller,
    pub(super) ended: JoinHandle<Outcome>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Bench::with(true, ConsoleDevice::Serial)
    }

    /// One whose guest waits to be booted.
    pub(super) fn created() -> Self {
        Bench::with(false, ConsoleDevice::Serial)
    }

    /// One whose console is this device.
    pub(super) fn with_console(device: ConsoleDevice) -> Self {
        Bench::with(true, device)
    }

    fn with(boots: bool, device: ConsoleDevice) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (controller, messages) = mpsc::channel();
        let news = News::default();
        let (console, writer) = console::Console::open(&ConsoleConfig::Null, device).unwrap();
        let listener = socket::listen(&directory.path().join("vm.sock")).unwrap();
        let weak = Arc::downgrade(&console);
        let server = Server::start(listener, controller.clone(), news.clone(), weak).unwrap();
        let controller_of_vm = controller.clone();
        let mut machine = machine(&EndOfLife::new(controller.clone(), 0));
        let hotplug = machine.bays.registers();
        let held = console.clone();
        let ended = std::thread::spawn(move || {
            let mut vm = Vm {
                config: config(),
                controller: controller_of_vm,
                news,
                ready: None,
                life: 1,
                pluggable: None,
                rom: None,
                passage: crate::devices::vfio::Passage::new(|_| {}),
                front: None,
                paths: Vec::new(),
            };
            if boots {
                // Silently: it is in nobody's interest.
                machine.has_booted = true;
                machine.gate.set(Phase::Running);
            }
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

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("vm.sock")
    }

    pub(super) async fn client(&self) -> VmmClient<Channel> {
        VmmClient::new(connect::unix(self.socket()).await.unwrap())
    }

    pub(super) fn kill(self) -> Outcome {
        self.controller.send(Message::Kill).unwrap();
        self.ended.join().unwrap()
    }
}

pub(super) fn config() -> VmConfig {
    VmConfig {
        name: "bench".parse().unwrap(),
        kernel: KernelConfig {
            kernel: HostFile::Path(PathBuf::new()),
            initramfs: None,
            cmdline: String::new(),
        },
        vcpus: "2".parse().unwrap(),
        memory: "64M".parse().unwrap(),
        pmem: None,
        disks: Vec::new(),
        nets: Vec::new(),
        console: ConsoleConfig::Null,
        boots: true,
        console_device: ConsoleDevice::Serial,
        reboot: true,
        api_socket: None,
        vsock: None,
        fs: Vec::new(),
        balloon: BalloonConfig::Off,
        host_devices: Vec::new(),
    }
}

pub(super) fn machine(end: &EndOfLife) -> Machine {
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let wires = Wires::new();
    let wiring = Wiring {
        ram: ram(1 << 20),
        msi: wires.clone(),
        ioevents: wires,
        ground: None,
    };
    let gate = Arc::new(Gate::new());
    Machine {
        processors: Processors::new(Vec::new(), gate.clone(), None),
        gate,
        bays: Bays::new(wiring, 0..0, event(), DeviceNumber::up_to(4), end),
        power_button: event(),
        has_booted: false,
    }
}

/// A test's story, which must not hang.
pub(super) fn run<T>(story: impl Future<Output = T>) -> T {
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
pub(super) enum Verb {
    Describe,
    Boot,
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
    /// While the memory is private.
    AddFs,
    /// Where none is.
    RemoveDevice,
    /// Which the VM does not have.
    SetBalloon,
    /// Of a VM whose size is fixed.
    Resize,
    /// For one that was never begun.
    WaitOperation,
    /// Of a serial port.
    ResizeConsole,
}

pub(super) fn disk(path: &str) -> api::AddDiskRequest {
    api::AddDiskRequest {
        path: path.into(),
        readonly: true,
        serial: String::new(),
        file: false,
    }
}

pub(super) fn fs(socket: &str) -> api::AddFsRequest {
    api::AddFsRequest {
        tag: "share".into(),
        socket: socket.into(),
    }
}

pub(super) fn removal(address: &str) -> api::RemoveDeviceRequest {
    api::RemoveDeviceRequest {
        address: address.into(),
        timeout_ms: 1000,
    }
}

pub(super) async fn call(client: &mut VmmClient<Channel>, verb: Verb) -> Result<(), tonic::Status> {
    match verb {
        Verb::Describe => client.describe(api::DescribeRequest {}).await.map(drop),
        Verb::Boot => client.boot(api::BootRequest {}).await.map(drop),
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
        Verb::AddFs => client.add_fs(fs("/nonexistent")).await.map(drop),
        Verb::SetBalloon => {
            let bytes = 1 << 20;
            let request = api::SetBalloonRequest { bytes };
            client.set_balloon(request).await.map(drop)
        }
        Verb::Resize => {
            let request = api::ResizeRequest {
                vcpus: 2,
                ..Default::default()
            };
            client.resize(request).await.map(drop)
        }
        Verb::WaitOperation => {
            let request = api::WaitOperationRequest { id: 1 };
            client.wait_operation(request).await.map(drop)
        }
        Verb::ResizeConsole => {
            let (width, height) = (80, 25);
            let request = api::ResizeConsoleRequest { width, height };
            client.resize_console(request).await.map(drop)
        }
        Verb::RemoveDevice => client.remove_device(removal("00:1f.0")).await.map(drop),
        Verb::Events => client.events(api::EventsRequest {}).await.map(drop),
        Verb::Console => {
            let silent = tokio_stream::empty();
            client.console(silent).await.map(drop)
        }
    }
}
