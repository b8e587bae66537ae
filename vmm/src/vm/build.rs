//! Building a machine for a guest, step by step.

use std::ops::Range;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::bays::{Bays, Idle, Wiring};
use super::processors::{Changes, Maker, Processors};
use super::{Error, Front, Machine, Vm};
use crate::arch::x86_64::regs::Entry;
use crate::arch::x86_64::{acpi, cpuid, layout};
use crate::boot;
use crate::bus::Bus;
use crate::config::{
    BalloonConfig, ConsoleDevice, DeviceConfig, DiskConfig, DiskSerial, FsBackend, FsConfig,
    HostFile, MacAddress, NetConfig, TapConfig, VcpuCount, VhostConfig, VmConfig,
};
use crate::control::EndOfLife;
use crate::devices::console::Console;
use crate::devices::cpu_hotplug::{self, CpuHotplug};
use crate::devices::pci_hotplug::REGISTERS_SIZE;
use crate::devices::power::{I8042, Power};
use crate::devices::pvpanic::PvPanic;
use crate::devices::vfio::{Ground, Passage};
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::{self, Blk};
use crate::devices::virtio::fs::{self, Fs};
use crate::devices::virtio::net::{self, Net, Vhost};
use crate::devices::virtio::{self, GuestMemory, rng::Rng, vsock::Vsock};
use crate::irq::{Lines, Routes};
use crate::memory::pluggable::{self, Blocks};
use crate::memory::rom::Rom;
use crate::memory::slots::Slots;
use crate::memory::{self, Region, Sharing};
use crate::pci::{DeviceNumber, Released};
use crate::socket::Unlink;
use crate::vcpu::{Buses, Gate};

impl Vm {
    /// Builds a machine for the guest's next life. Nothing of the guest runs yet.
    pub(super) fn build(&mut self, end: EndOfLife) -> Result<Machine, Error> {
        let config = &self.config;
        let kvm = open_kvm()?;
        let given = match &self.front {
            Some(_) => Vec::new(),
            None => self.passage.open_all(&config.host_devices)?,
        };
        let resting = self.front.iter().flat_map(|front| &front.devices);
        let room64 = resting.chain(&given).map(Idle::room64);
        let room64 = room64.fold(0, u64::saturating_add);
        let pluggable = plug_nothing(config, &mut self.pluggable)?;
        let rom = read_only(config, &mut self.rom)?;
        // A kernel that cannot be loaded ends it here, before anybody is connected to: it must not cost a backend its only client.
        let (vm, loaded) = both(|| create_vm(&kvm), || load(config, pluggable, rom, room64))?;
        let Loaded {
            ram,
            entry,
            window64,
        } = loaded;
        memory::register(&vm, &ram)?;
        if let Some(rom) = rom {
            rom.register(&vm, rom_slot(&ram))?;
        }
        let routes = interrupt_controllers(&vm)?;

        let front = match &mut self.front {
            Some(front) => front,
            none => none.insert(Front::open(config, pluggable, given, &mut self.paths)?),
        };
        let (power_button, hotplug) = (eventfd()?, eventfd()?);
        wire(&vm, front.console.irq(), layout::SERIAL_GSI)?;
        wire(&vm, &power_button, layout::POWER_GSI)?;
        wire(&vm, &hotplug, layout::PCI_HOTPLUG_GSI)?;
        let wiring = Wiring {
            ground: Some(ground(&vm, &ram, &routes, config)),
            ram,
            msi: routes.clone(),
            ioevents: routes,
        };
        let mut bays = Bays::new(wiring, window64, hotplug, last_slot(config), &end);
        bays.fill(std::mem::take(&mut front.devices))?;
        let cpu_hotplug = cpu_hotplug(&vm, config, &end)?;
        let buses = buses(&bays, &front.console, cpu_hotplug.clone(), &end)?;

        let gate = Arc::new(Gate::new());
        let maker = Maker {
            supported: cpuid::supported(&kvm)
                .map_err(|e| Error::KvmRefused("tell what CPUID it supports", e))?,
            vm,
            most: config.vcpus.limit(),
            entry,
            buses,
            gate: gate.clone(),
            end,
        };
        let vcpus = maker.boot(config.vcpus.boot)?;
        let changes = cpu_hotplug.map(|registers| Changes::new(registers, maker));
        Ok(Machine {
            processors: Processors::new(vcpus, gate.clone(), changes),
            gate,
            bays,
            power_button,
            has_booted: false,
        })
    }
}

/// RAM with everything in it that the guest begins with.
struct Loaded {
    ram: Arc<GuestMemory>,
    entry: Entry,
    /// The 64-bit PCI window.
    window64: Range<u64>,
}

/// The memory that may come and go, of which the next machine has nothing yet. It stays when the guest resets itself: the device that it
/// comes by does.
fn plug_nothing<'r>(
    config: &VmConfig,
    place: &'r mut Option<Arc<Region>>,
) -> Result<Option<&'r Arc<Region>>, Error> {
    let len = config.memory.pluggable();
    if len == 0 {
        return Ok(None);
    }
    let region = match place {
        Some(region) => region,
        none => none.insert(Arc::new(pluggable::region(
            layout::pluggable_start(config.memory.size.bytes()),
            len,
        )?)),
    };
    if let Some(Err(error)) = region.blocks().map(Blocks::unplug_all) {
        return Err(Error::System("take back the last guest's memory", error));
    }
    Ok(Some(region))
}

/// The file that the guest reads as persistent memory, if there is one. It stays mapped when the guest resets itself.
fn read_only<'r>(config: &VmConfig, place: &'r mut Option<Rom>) -> Result<Option<&'r Rom>, Error> {
    if let (None, Some(file)) = (&place, &config.pmem) {
        *place = Some(Rom::map(file)?);
    }
    Ok(place.as_ref())
}

fn load(
    config: &VmConfig,
    pluggable: Option<&Arc<Region>>,
    rom: Option<&Rom>,
    room64: u64,
) -> Result<Loaded, Error> {
    let ram = memory::map(config.memory.size, sharing(config))?;
    let end = pluggable.map_or(ram.last_addr(), |region| region.last_addr());
    let window64 = pci_window64(end, room64);
    let machine = acpi::Machine {
        vcpus: config.vcpus.boot.get(),
        most_vcpus: config.vcpus.most.map(VcpuCount::get),
        pci_window64: (window64.start, window64.end - 1),
        last_slot: last_slot(config),
        interrupt_lines: has_lines(config),
    };
    let rsdp = acpi::write(&ram, machine)?;
    let entry = boot::load(&ram, &config.kernel, rom.map(Rom::range), rsdp)?;
    // What is not RAM when the guest boots comes last: nobody takes it for RAM.
    let ram = match pluggable {
        Some(region) => Arc::new(memory::with(&ram, region)?),
        None => ram,
    };
    Ok(Loaded {
        ram,
        entry,
        window64,
    })
}

/// Who maps the RAM, and what it is made of.
pub(super) fn sharing(config: &VmConfig) -> Sharing {
    match config.memory.backing.hugepages {
        Some(pages) => Sharing::Huge(pages),
        None if config.memory.backing.shared || !config.fs.is_empty() => Sharing::Shared,
        None => Sharing::Private,
    }
}

/// Creates the VM and loads the guest at the same time: for most of the first the host's kernel waits for grace periods of its own, 8 to 16 ms
/// where it was measured. So that is what begins, on this thread; another one may not run before this one waits.
fn both<T>(
    create: impl FnOnce() -> Result<T, Error>,
    load: impl FnOnce() -> Result<Loaded, Error> + Send,
) -> Result<(T, Loaded), Error> {
    thread::scope(|scope| {
        let loading = thread::Builder::new()
            .name("load".into())
            .spawn_scoped(scope, load)
            .map_err(|e| Error::System("start a thread", e))?;
        let created = create();
        // It has nothing to panic about; a panic goes on here.
        let loaded = loading
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
        config.console_device == ConsoleDevice::Virtio,
        has_balloon(config),
        config.memory.pluggable() > 0,
    ];
    let single = single.into_iter().filter(|there| *there).count();
    let several = [
        config.disks.len(),
        config.nets.len(),
        config.fs.len(),
        config.host_devices.len(),
    ];
    DeviceNumber::up_to(single + several.iter().sum::<usize>() + ROOM)
}

/// The devices in the order of their PCI addresses: randomness, disks, network, vsock, shared directories; and behind them, the console, the
/// balloon, the memory that comes and goes, and the host's own.
pub(super) fn virtio_devices(
    config: &VmConfig,
    paths: &mut Vec<Unlink>,
) -> Result<Vec<Idle>, Error> {
    let mut devices = vec![Idle::from(Rng::open()?)];
    for disk in &config.disks {
        devices.push(open_disk(disk, config.vcpus.boot)?.into());
    }
    for net in &config.nets {
        devices.push(open_net(net)?.into());
    }
    if let Some(vsock) = &config.vsock {
        devices.push(Vsock::new(u64::from(vsock.cid), vsock.socket.clone())?.into());
        paths.push(Unlink::later(&vsock.socket));
    }
    for fs in &config.fs {
        devices.push(open_fs(fs)?.into());
    }
    Ok(devices)
}

/// The balloon, if there is to be one. Huge pages are not given back, so that nobody needs to hear which of them are free.
pub(super) fn balloon(config: &VmConfig) -> Option<Balloon> {
    if !has_balloon(config) {
        return None;
    }
    match (config.balloon, config.memory.backing.hugepages) {
        (BalloonConfig::On(size), None) => Some(Balloon::new(size)),
        (BalloonConfig::On(size), Some(_)) => Some(Balloon::new(size).without_reports()),
        (BalloonConfig::Off, _) => None,
    }
}

/// Whether there is to be a balloon: what devices of the host's reach stays where it is, so that nothing of it could be given back.
fn has_balloon(config: &VmConfig) -> bool {
    config.balloon != BalloonConfig::Off && config.host_devices.is_empty()
}

/// The device of a configuration, for a VM of so many vCPUs; idle.
pub(super) fn open_device(
    config: &DeviceConfig,
    vcpus: VcpuCount,
    passage: &mut Passage,
) -> Result<Released, Error> {
    let device: Box<dyn virtio::Device> = match config {
        DeviceConfig::Disk(disk) => Box::new(open_disk(disk, vcpus)?),
        DeviceConfig::Net(net) => Box::new(open_net(net)?),
        DeviceConfig::Fs(fs) => Box::new(open_fs(fs)?),
        DeviceConfig::Host(host) => return Ok(Released::Host(Box::new(passage.open(host)?))),
    };
    Ok(Released::Virtio(device))
}

fn open_disk(disk: &DiskConfig, vcpus: VcpuCount) -> Result<Blk, Error> {
    let options = blk::Options {
        readonly: disk.readonly,
        serial: disk.serial.map(DiskSerial::bytes),
        queues: vcpus.get().into(),
    };
    Ok(match &disk.file {
        HostFile::Path(path) => Blk::open(path, options)?,
        HostFile::Given(fd) => Blk::take(*fd, options)?,
    })
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

fn open_fs(fs: &FsConfig) -> Result<Fs, Error> {
    let source = match &fs.backend {
        FsBackend::Socket(path) => fs::Source::Socket(path.clone()),
        // SAFETY: whoever made the configuration left the descriptor to this device, and it is opened once.
        FsBackend::Connected(fd) => fs::Source::Connected(unsafe { UnixStream::from_raw_fd(*fd) }),
    };
    Ok(Fs::new(fs.tag.as_str(), source)?)
}

/// The registers by which vCPUs come and go, where they may.
fn cpu_hotplug(
    vm: &VmFd,
    config: &VmConfig,
    end: &EndOfLife,
) -> Result<Option<Arc<CpuHotplug>>, Error> {
    if config.vcpus.most.is_none() {
        return Ok(None);
    }
    let (event, end) = (eventfd()?, end.clone());
    wire(vm, &event, layout::CPU_HOTPLUG_GSI)?;
    let on_eject = Box::new(move |id| end.eject_vcpu(id));
    let registers = CpuHotplug::new(config.vcpus.boot.get(), event, on_eject);
    Ok(Some(Arc::new(registers)))
}

fn buses(
    bays: &Bays,
    console: &Arc<Console>,
    cpu_hotplug: Option<Arc<CpuHotplug>>,
    end: &EndOfLife,
) -> Result<Arc<Buses>, Error> {
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
    if let Some(registers) = cpu_hotplug {
        ports.insert(
            layout::CPU_HOTPLUG_PORT.into(),
            cpu_hotplug::REGISTERS_SIZE.into(),
            registers,
        )?;
    }
    let mut memory = Bus::new();
    memory.insert(layout::ECAM_START, layout::ECAM_SIZE, pci.ecam())?;
    memory.insert(
        layout::PCI_WINDOW_START,
        layout::PCI_WINDOW_SIZE,
        pci.window(),
    )?;
    if let Some((start, size, window)) = pci.window64() {
        memory.insert(start, size, window)?;
    }
    Ok(Arc::new(Buses::new(ports, memory)))
}

/// Lets `event` raise pin `gsi` of the IOAPIC.
fn wire(vm: &VmFd, event: &EventFd, gsi: u32) -> Result<(), Error> {
    vm.register_irqfd(event, gsi)
        .map_err(|e| Error::KvmRefused("register an irqfd", e))
}

/// The 64-bit PCI window, behind the last address of memory, with room for BARs of `room` bytes together and as much again for those that
/// come later.
fn pci_window64(last: GuestAddress, room: u64) -> Range<u64> {
    /// Aligned to, and at least as long as, what the largest BARs of today ask for.
    const SIZE: u64 = 1 << 36;
    /// The host's processors must have as many bits of addresses; more room than this is nobody's.
    const MOST: u64 = 1 << 44;
    let size = room.saturating_mul(2).clamp(SIZE, MOST);
    let size = size.next_power_of_two();
    let end = last.raw_value().max(layout::HOLE_END);
    let start = end.next_multiple_of(size);
    start..start + size
}

/// What devices of the host's need.
fn ground(
    vm: &Arc<VmFd>,
    ram: &Arc<GuestMemory>,
    routes: &Arc<Routes>,
    config: &VmConfig,
) -> Arc<Ground> {
    // KVM knows RAM, and the file that the guest reads, by the numbers up to there.
    let slots = Slots::from(rom_slot(ram).saturating_add(1));
    let lines = has_lines(config).then(|| routes.clone() as Arc<dyn Lines>);
    let (vm, ram) = (vm.clone(), ram.clone());
    let ground = Ground::new(vm, ram, Arc::new(slots), routes.clone(), lines);
    Arc::new(ground)
}

/// The number by which KVM knows the file that the guest reads as persistent memory: the first behind those of RAM.
fn rom_slot(ram: &GuestMemory) -> u32 {
    u32::try_from(ram.num_regions()).unwrap_or(u32::MAX)
}

/// Whether the guest's firmware tells of interrupt lines: devices of ours have none, and a table of them costs time at boot.
fn has_lines(config: &VmConfig) -> bool {
    !config.host_devices.is_empty()
}

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(|e| Error::System("create an eventfd", e))
}
