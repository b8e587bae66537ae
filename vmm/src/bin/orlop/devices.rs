//! `orlop add-disk`, `add-net`, `add-fs` and `remove-device`: devices that come and go while a VM runs; and `orlop balloon`, memory that does.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{self, Path};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use orlop_proto::files;
use orlop_proto::vmm::v1::{
    AddDiskRequest, AddFsRequest, AddHostDeviceRequest, AddNetRequest, RemoveDeviceRequest,
    SetBalloonRequest, Vhost,
};
use orlop_vmm::config::{
    DiskConfig, FsBackend, FsConfig, HostDeviceConfig, HostFile, MacAddress, NetConfig, TapConfig,
    VhostConfig, mebibytes,
};
use orlop_vmm::pci::DeviceNumber;

use crate::client::{self, Target, answer, done, milliseconds};
use crate::output;

/// What `orlop add-disk --help` ends with.
pub const ADD_DISK_HELP: &str = "\
Prints the disk's PCI address, by which it is removed. There are eight places for devices that come while a VM runs.

Example:
  orlop add-disk web path=data.img,serial=data";

/// What `orlop add-net --help` ends with.
pub const ADD_NET_HELP: &str = "\
Prints the card's PCI address, by which it is removed.

Example:
  orlop add-net web tap=orlop1,mac=02:00:00:00:00:01";

/// What `orlop add-fs --help` ends with.
pub const ADD_FS_HELP: &str = "\
The VM's memory must be shared: start it with `--memory SIZE,shared`, or with a shared directory. Prints the device's PCI address, by
which it is removed.

Example:
  virtiofsd --shared-dir /srv --socket-path /run/srv.sock &
  orlop add-fs web tag=srv,socket=/run/srv.sock";

/// What `orlop add-device --help` ends with.
pub const ADD_DEVICE_HELP: &str = "\
The device must be VFIO's: see `orlop pci bind`. From then on all of the VM's memory stays in the host's. Prints the device's PCI address in
the VM, by which it is removed.

Example:
  orlop add-device web 0000:65:00.0,id=gpu0";

/// What `orlop remove-device --help` ends with.
pub const REMOVE_HELP: &str = "\
A guest that uses the device may keep it for as long as it likes.

Example:
  orlop remove-device web 0000:00:04.0";

/// What `orlop balloon --help` ends with.
pub const BALLOON_HELP: &str = "\
The guest gives what it can do without, and takes back what it needs before it runs out. `orlop stats` tells how far it is.

Example:
  orlop balloon web 512M";

/// The flags of `orlop add-disk`.
#[derive(Args)]
pub struct AddDisk {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// The disk, as `orlop run --disk` takes it
    #[arg(value_name = "path=FILE|fd=N[,readonly][,serial=TEXT]")]
    disk: DiskConfig,
}

/// The flags of `orlop add-net`.
#[derive(Args)]
pub struct AddNet {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// The network card, as `orlop run --net` takes it
    #[arg(value_name = "tap=NAME[,queues=N]|fd=N[:N...][,mac=MAC][,vhost=auto|on|off]")]
    net: NetConfig,
}

/// The flags of `orlop add-fs`.
#[derive(Args)]
pub struct AddFs {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// The directory, whose virtiofsd listens on the socket
    #[arg(value_name = "tag=TAG,socket=PATH")]
    fs: FsConfig,
}

/// The flags of `orlop add-device`.
#[derive(Args)]
pub struct AddDevice {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// A PCI device of the host's, as `orlop run --device` takes it
    #[arg(value_name = "ADDRESS[,id=NAME]")]
    device: HostDeviceConfig,
}

/// The flags of `orlop remove-device`.
#[derive(Args)]
pub struct Remove {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// The device's PCI address, as `orlop inspect` prints it
    #[arg(value_name = "ADDRESS")]
    address: DeviceNumber,
    /// How long the guest may take to let go of it, as 30s
    #[arg(long, short, value_name = "TIME", default_value = "10s")]
    timeout: humantime::Duration,
}

/// The flags of `orlop balloon`.
#[derive(Args)]
pub struct Balloon {
    /// A VM, by name or by the path of its control socket
    #[arg(value_name = "VM")]
    vm: Target,
    /// How much memory the guest is to give up, as 512M; 0 for none
    #[arg(value_name = "SIZE", value_parser = mebibytes)]
    size: u64,
}

/// Has a guest give up memory.
///
/// # Errors
/// When the VM does not run, or has no balloon.
pub fn balloon(arguments: &Balloon) -> anyhow::Result<ExitCode> {
    let request = SetBalloonRequest {
        bytes: arguments.size,
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        answer(&arguments.vm, vm.client.set_balloon(request)).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Gives a VM another disk.
///
/// # Errors
/// When the VM does not run, or refuses.
pub fn add_disk(arguments: &AddDisk) -> anyhow::Result<ExitCode> {
    let DiskConfig {
        file,
        readonly,
        serial,
    } = &arguments.disk;
    // The VM's process need not be allowed to open it.
    let file = match file {
        HostFile::Given(fd) => handed_over(*fd)?,
        HostFile::Path(path) => open(path, *readonly)?,
    };
    let serial = serial.map(|serial| {
        let text = serial.bytes();
        String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .to_owned()
    });
    let request = AddDiskRequest {
        readonly: *readonly,
        serial: serial.unwrap_or_default(),
        file: true,
        ..Default::default()
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        vm.files.push(file);
        let added = answer(&arguments.vm, vm.client.add_disk(request)).await?;
        Ok(output::print(&format!("{}\n", added.address)).map(|()| ExitCode::SUCCESS)?)
    })
}

fn open(path: &Path, readonly: bool) -> anyhow::Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .write(!readonly)
        // A pipe would wait for somebody at its other end.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let how = if readonly { "" } else { " for writing" };
    let file = file.with_context(|| format!("cannot open the disk {}{how}", path.display()))?;
    Ok(file.into())
}

/// A descriptor that this command was started with.
fn handed_over(fd: RawFd) -> anyhow::Result<OwnedFd> {
    files::copy(fd).with_context(|| format!("descriptor {fd} is not open"))
}

/// Gives a VM another network card.
///
/// # Errors
/// When the VM does not run, or refuses.
pub fn add_net(arguments: &AddNet) -> anyhow::Result<ExitCode> {
    let NetConfig { tap, mac, vhost } = &arguments.net;
    let (tap, queues, files) = match tap {
        TapConfig::Named(tap, queues) => (tap.as_str(), *queues, Vec::new()),
        TapConfig::Given(fds) => {
            let fds = fds.iter().map(|fd| handed_over(*fd));
            ("", 0, fds.collect::<anyhow::Result<_>>()?)
        }
    };
    let vhost = match vhost {
        VhostConfig::Auto => Vhost::Unspecified,
        VhostConfig::On => Vhost::On,
        VhostConfig::Off => Vhost::Off,
    };
    let request = AddNetRequest {
        tap: tap.into(),
        queues: queues.into(),
        files: u32::try_from(files.len())?,
        mac: mac.as_ref().map(MacAddress::to_string).unwrap_or_default(),
        vhost: vhost.into(),
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        for file in files {
            vm.files.push(file);
        }
        let added = answer(&arguments.vm, vm.client.add_net(request)).await?;
        Ok(output::print(&format!("{}\n", added.address)).map(|()| ExitCode::SUCCESS)?)
    })
}

/// Gives a VM another shared directory.
///
/// # Errors
/// When the VM does not run, or refuses.
pub fn add_fs(arguments: &AddFs) -> anyhow::Result<ExitCode> {
    let FsConfig { tag, backend } = &arguments.fs;
    let FsBackend::Socket(socket) = backend else {
        bail!("a VM that runs does not have this command's descriptors: give it a socket");
    };
    let request = AddFsRequest {
        tag: tag.as_str().into(),
        socket: absolute(socket)?,
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        let added = answer(&arguments.vm, vm.client.add_fs(request)).await?;
        Ok(output::print(&format!("{}\n", added.address)).map(|()| ExitCode::SUCCESS)?)
    })
}

/// Gives a VM a PCI device of the host's.
///
/// # Errors
/// When the VM does not run, or refuses.
pub fn add_device(arguments: &AddDevice) -> anyhow::Result<ExitCode> {
    let HostDeviceConfig { address, id, files } = &arguments.device;
    if files.device.is_some() {
        bail!(
            "{address}: fd= is for a VM that begins with the device (`orlop run --device`); leave it out, and the VM opens the device itself"
        );
    }
    let request = AddHostDeviceRequest {
        address: address.to_string(),
        id: id.clone().unwrap_or_default(),
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        let added = answer(&arguments.vm, vm.client.add_host_device(request)).await?;
        Ok(output::print(&format!("{}\n", added.address)).map(|()| ExitCode::SUCCESS)?)
    })
}

/// A path as the VMM finds it, which has another working directory.
fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = path::absolute(path).with_context(|| format!("cannot find {}", path.display()))?;
    match path.to_str() {
        Some(path) => Ok(path.into()),
        None => bail!("the path {} is not UTF-8", path.display()),
    }
}

/// Has a guest let go of a device.
///
/// # Errors
/// When the VM does not run, has no such device, or its guest keeps it.
pub fn remove(arguments: &Remove) -> anyhow::Result<ExitCode> {
    let request = RemoveDeviceRequest {
        address: arguments.address.to_string(),
        timeout_ms: milliseconds(arguments.timeout)?,
    };
    client::runtime()?.block_on(async {
        let mut vm = arguments.vm.connect().await?;
        let begun = answer(&arguments.vm, vm.client.remove_device(request)).await?;
        done(&arguments.vm, &mut vm.client, begun).await?;
        Ok(ExitCode::SUCCESS)
    })
}
