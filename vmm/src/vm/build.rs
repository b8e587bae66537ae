//! Building a machine for a guest, step by step.

use std::sync::Arc;
use std::thread;

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::bays::{Bays, Wiring};
use super::{Error, Front, Machine, Vm};
use crate::arch::x86_64::regs::Entry;
use crate::arch::x86_64::{acpi, cpuid, layout, regs};
use crate::boot;
use crate::bus::Bus;
use crate::config::{
    BalloonConfig, DeviceConfig, DiskConfig, DiskSerial, MacAddress, NetConfig, TapConfig,
    VcpuCount, VhostConfig, VmConfig,
};
use crate::control::EndOfLife;
use crate::devices::console::Console;
use crate::devices::pci_hotplug::REGISTERS_SIZE;
use crate::devices::power::{I8042, Power};
use crate::devices::pvpanic::PvPanic;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::{self, Blk};
use crate::devices::virtio::net::{self, Net, Vhost};
use crate::devices::virtio::{self, GuestMemory, fs::Fs, rng::Rng, vsock::Vsock};
use crate::irq::Routes;
use crate::memory::{self, Sharing};
use crate::pci::DeviceNumber;
use crate::socket::Unlink;
use crate::vcpu::{Buses, Gate, Vcpu};

impl Vm {
    /// Builds a machine for the guest's next life. Nothing of the guest runs yet.
    pub(super) fn build(&mut self, end: EndOfLife) -> Result<Machine, Error> {
        let config = &self.config;
        let kvm = open_kvm()?;
        // A kernel that cannot be loaded ends it here, before anybody is connected to: it must not cost a backend its only client.
        let (vm, Loaded { ram, entry }) = both(|| create_vm(&kvm), || load(config))?;
        memory::register(&vm, &ram)?;
        let routes = interrupt_controllers(&vm)?;

        let front = match &mut self.front {
            Some(front) => front,
            none => none.insert(Front::open(config, &mut self.paths)?),
        };
        let (power_button, hotplug) = (eventfd()?, eventfd()?);
        wire(&vm, front.console.irq(), layout::SERIAL_GSI)?;
        wire(&vm, &power_button, layout::POWER_GSI)?;
        wire(&vm, &hotplug, layout::PCI_HOTPLUG_GSI)?;
        let wiring = Wiring {
            ram,
            msi: routes.clone(),
            ioevents: routes,
        };
        let bays = Bays::new(wiring, hotplug, last_slot(config), &end);
        for device in std::mem::take(&mut front.devices) {
            bays.fill(device)?;
        }
        let buses = buses(&bays, &front.console, &end)?;

        let gate = Arc::new(Gate::new());
        let vcpus = spawn_vcpus(&kvm, &vm, config.vcpus.get(), entry, |id, fd| {
            Vcpu::spawn(id, fd, buses.clone(), gate.clone(), end.clone())
        })?;
        Ok(Machine {
            gate,
            vcpus,
            bays,
            power_button,
        })
    }
}

/// RAM with everything in it that the guest begins with.
struct Loaded {
    ram: Arc<GuestMemory>,
    entry: Entry,
}

fn load(config: &VmConfig) -> Result<Loaded, Error> {
    let sharing = if config.fs.is_empty() {
        Sharing::Private
    } else {
        Sharing::Shared
    };
    let ram = memory::map(config.memory, sharing)?;
    let machine = acpi::Machine {
        vcpus: config.vcpus.get(),
        pci_window64: pci_window64(&ram),
        last_slot: last_slot(config),
    };
    let rsdp = acpi::write(&ram, machine)?;
    let entry = boot::load(&ram, &config.kernel, rsdp)?;
    Ok(Loaded { ram, entry })
}

/// Creates the VM and loads the guest at the same time: for most of the first the host's kernel waits for grace periods of its own, 8 ms
/// where it was measured.
fn both<T>(
    create: impl FnOnce() -> Result<T, Error> + Send,
    load: impl FnOnce() -> Result<Loaded, Error>,
) -> Result<(T, Loaded), Error>
where
    T: Send,
{
    thread::scope(|scope| {
        let creating = thread::Builder::new()
            .name("create-vm".into())
            .spawn_scoped(scope, create)
            .map_err(|e| Error::System("start a thread", e))?;
        let loaded = load();
        // It has nothing to panic about; a panic goes on here.
        let created = creating
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((created?, loaded?))
    })
}

fn create_vm(kvm: &Kvm) -> Result<Arc<VmFd>, Error> {
    let vm = kvm
        .create_vm()
        .map_err(|e| Error::KvmRefused("create a VM", e))?;
    Ok(Arc::new(vm))
}

fn open_kvm() -> Result<Kvm, Error> {
    /// The one version that there has been since Linux 2.6.22.
    const KVM_API_VERSION: i32 = 12;
    let kvm = Kvm::new().map_err(Error::Kvm)?;
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        other => Err(Error::KvmVersion(other)),
    }
}

/// The IOAPIC and the local APICs, in the kernel.
fn interrupt_controllers(vm: &Arc<VmFd>) -> Result<Arc<Routes>, Error> {
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(|e| Error::KvmRefused("place its TSS", e))?;
    vm.create_irq_chip()
        .map_err(|e| Error::KvmRefused("create interrupt controllers", e))?;
    Ok(Arc::new(Routes::new(vm.clone())?))
}

/// The last PCI slot whose device may come and go: beside the devices that the VM begins with, there are a few for those that come. Each
/// slot costs the guest time when it boots.
fn last_slot(config: &VmConfig) -> DeviceNumber {
    /// Beside those that are there at first.
    const ROOM: usize = 8;
    let single = [
        true,
        config.vsock.is_some(),
        config.balloon != BalloonConfig::Off,
    ];
    let single = single.into_iter().filter(|there| *there).count();
    DeviceNumber::up_to(single + config.disks.len() + config.nets.len() + config.fs.len() + ROOM)
}

/// The devices in the order of their PCI addresses: randomness, disks, network, vsock, shared directories; and behind them, the balloon.
pub(super) fn virtio_devices(
    config: &VmConfig,
    paths: &mut Vec<Unlink>,
) -> Result<Vec<Box<dyn virtio::Device>>, Error> {
    let mut devices: Vec<Box<dyn virtio::Device>> = vec![Box::new(Rng::open()?)];
    for disk in &config.disks {
        devices.push(Box::new(open_disk(disk, config.vcpus)?));
    }
    for net in &config.nets {
        devices.push(Box::new(open_net(net)?));
    }
    if let Some(vsock) = &config.vsock {
        devices.push(Box::new(Vsock::new(
            u64::from(vsock.cid),
            vsock.socket.clone(),
        )?));
        paths.push(Unlink::later(&vsock.socket));
    }
    for fs in &config.fs {
        devices.push(Box::new(Fs::new(&fs.tag, fs.socket.clone())?));
    }
    Ok(devices)
}

/// The balloon, if there is to be one.
pub(super) fn balloon(config: &VmConfig) -> Option<Balloon> {
    match config.balloon {
        BalloonConfig::On(size) => Some(Balloon::new(size)),
        BalloonConfig::Off => None,
    }
}

/// The device of a configuration, for a VM of so many vCPUs; idle.
pub(super) fn open_device(
    config: &DeviceConfig,
    vcpus: VcpuCount,
) -> Result<Box<dyn virtio::Device>, Error> {
    Ok(match config {
        DeviceConfig::Disk(disk) => Box::new(open_disk(disk, vcpus)?),
        DeviceConfig::Net(net) => Box::new(open_net(net)?),
    })
}

fn open_disk(disk: &DiskConfig, vcpus: VcpuCount) -> Result<Blk, Error> {
    let options = blk::Options {
        readonly: disk.readonly,
        serial: disk.serial.map(DiskSerial::bytes),
        queues: vcpus.get().into(),
    };
    Ok(Blk::open(&disk.path, options)?)
}

fn open_net(net: &NetConfig) -> Result<Net, Error> {
    let tap = match &net.tap {
        TapConfig::Named(name, queues) => net::Source::Named(name.as_str().into(), *queues),
        TapConfig::Given(fds) => net::Source::Given(fds.clone()),
    };
    let mac = net.mac.map(MacAddress::bytes);
    let vhost = match net.vhost {
        VhostConfig::Auto => Vhost::Auto,
        VhostConfig::On => Vhost::On,
        VhostConfig::Off => Vhost::Off,
    };
    Ok(Net::open(&tap, mac, vhost)?)
}

fn buses(bays: &Bays, console: &Arc<Console>, end: &EndOfLife) -> Result<Arc<Buses>, Error> {
    let pci = bays.bus();
    let mut ports = Bus::new();
    let power = Arc::new(Power::new(end.clone()));
    let keyboard = Arc::new(I8042::new(end.clone()));
    ports.insert(layout::SERIAL_PORT.into(), 8, console.clone())?;
    ports.insert(
        layout::I8042_PORT.into(),
        layout::I8042_SIZE.into(),
        keyboard,
    )?;
    ports.insert(layout::POWER_PORT.into(), layout::POWER_SIZE.into(), power)?;
    let pvpanic = Arc::new(PvPanic::new(end.clone()));
    ports.insert(layout::PVPANIC_PORT.into(), 1, pvpanic)?;
    ports.insert(
        layout::PCI_CONFIG_PORT.into(),
        layout::PCI_CONFIG_SIZE.into(),
        pci.ports(),
    )?;
    ports.insert(
        layout::PCI_HOTPLUG_PORT.into(),
        REGISTERS_SIZE.into(),
        bays.registers(),
    )?;
    let mut memory = Bus::new();
    memory.insert(layout::ECAM_START, layout::ECAM_SIZE, pci.ecam())?;
    memory.insert(
        layout::PCI_WINDOW_START,
        layout::PCI_WINDOW_SIZE,
        pci.window(),
    )?;
    Ok(Arc::new(Buses { ports, memory }))
}

/// Lets `event` raise pin `gsi` of the IOAPIC.
fn wire(vm: &VmFd, event: &EventFd, gsi: u32) -> Result<(), Error> {
    vm.register_irqfd(event, gsi)
        .map_err(|e| Error::KvmRefused("register an irqfd", e))
}

/// The 64-bit PCI window, behind the end of RAM.
fn pci_window64(ram: &GuestMemory) -> (u64, u64) {
    /// Aligned to, and as long as, what the largest BARs of today ask for.
    const SIZE: u64 = 1 << 36;
    let ram_end = ram.last_addr().raw_value().max(layout::HOLE_END);
    let start = ram_end.next_multiple_of(SIZE);
    (start, start + SIZE - 1)
}

/// All vCPUs are created before the first is set up: their threads wait at the gate.
fn spawn_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: u8,
    entry: Entry,
    spawn: impl Fn(u8, kvm_ioctls::VcpuFd) -> std::io::Result<Vcpu>,
) -> Result<Vec<Vcpu>, Error> {
    let supported =
        cpuid::supported(kvm).map_err(|e| Error::KvmRefused("tell what CPUID it supports", e))?;
    let mut fds = Vec::with_capacity(count.into());
    for id in 0..count {
        let fd = vm
            .create_vcpu(id.into())
            .map_err(|e| Error::KvmRefused("create a vCPU; give the VM fewer with --cpus", e))?;
        let leaves = cpuid::of_vcpu(&supported, id, count).map_err(Error::Cpuid)?;
        fd.set_cpuid2(&leaves)
            .map_err(|e| Error::KvmRefused("set a vCPU's CPUID", e))?;
        regs::set_up(&fd, entry)?;
        fds.push((id, fd));
    }
    fds.into_iter()
        .map(|(id, fd)| spawn(id, fd).map_err(|e| Error::System("start a vCPU's thread", e)))
        .collect()
}

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(|e| Error::System("create an eventfd", e))
}
