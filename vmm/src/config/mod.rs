//! What the user asked for: plain values, checked where they are made, with messages that say what to change.

mod balloon;
mod console;
mod file;
mod fs;
mod host_device;
mod memory;
mod net;
mod parse;
mod size;

use std::path::PathBuf;

pub use balloon::BalloonConfig;
pub use console::{ConsoleConfig, ConsoleDevice};
pub use file::HostFile;
pub use fs::{FsBackend, FsConfig, FsTag, ShareConfig};
pub use host_device::{HostAddress, HostDeviceConfig, VfioFiles};
pub use memory::{HugePages, MemoryBacking};
pub use net::{MacAddress, NetConfig, TapConfig, TapName, VhostConfig};
pub use parse::{ParseError, mebibytes};
pub use size::{CpusConfig, MemoryConfig};

/// One VM.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// What people call it.
    pub name: VmName,
    /// What it boots.
    pub kernel: KernelConfig,
    /// How many processors it has.
    pub vcpus: CpusConfig,
    /// How much memory it has.
    pub memory: MemoryConfig,
    /// A file that its guest reads as persistent memory, if any.
    pub pmem: Option<HostFile>,
    /// Its disks, in the order of their PCI addresses.
    pub disks: Vec<DiskConfig>,
    /// Its network devices, in the order of their PCI addresses, behind the disks.
    pub nets: Vec<NetConfig>,
    /// Where its console goes.
    pub console: ConsoleConfig,
    /// Whether the guest boots at once; otherwise it waits for a client to say so.
    pub boots: bool,
    /// Which device that is.
    pub console_device: ConsoleDevice,
    /// Whether a guest that resets itself boots again; otherwise that is the VM's end.
    pub reboot: bool,
    /// Where it is controlled; `None` for a socket of its name in the state directory.
    pub api_socket: Option<PathBuf>,
    /// Its vsock.
    pub vsock: Option<VsockConfig>,
    /// The directories that it shares.
    pub fs: Vec<FsConfig>,
    /// Whether it gives back memory that its guest does not use.
    pub balloon: BalloonConfig,
    /// The host's devices that it is given, in the order of their PCI addresses, behind all others.
    pub host_devices: Vec<HostDeviceConfig>,
}

/// A device that a VM can be given while it runs.
#[derive(Clone, Debug)]
pub enum DeviceConfig {
    /// A disk.
    Disk(DiskConfig),
    /// A network card.
    Net(NetConfig),
    /// A shared directory.
    Fs(FsConfig),
    /// A device of the host's.
    Host(HostDeviceConfig),
}

/// What a VM boots.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: HostFile,
    /// An initramfs, if any.
    pub initramfs: Option<HostFile>,
    /// The kernel's command line, exactly.
    pub cmdline: String,
}

/// The command line of a VM whose user gave none: quick to boot, with the console on the serial port.
///
/// `percpu_alloc=page`: else each processor's memory of its own is had in pieces of 2 MiB, and where a second is needed, as it is for few devices, the account
/// of whose control groups it belongs to takes 4 MiB.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux \
     i8042.dumbkbd swiotlb=noforce cryptomgr.notests tsc=reliable random.trust_cpu=1 \
     percpu_alloc=page";

/// What [`DEFAULT_CMDLINE`] goes on with for a VM whose memory may grow: what comes is used, for what can be moved out of it again.
pub const MOVABLE_MEMORY: &str = " memhp_default_state=online_movable";

/// A VM's name: 1 to 76 characters of `[A-Za-z0-9_.-]`, beginning with an alphanumeric one, as containerd's ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmName(String);

/// A number of vCPUs: 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuCount(u8);

/// An amount of RAM: whole MiB, 32 MiB to 1 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(u64);

/// A disk: `path=F|fd=N[,readonly][,serial=S]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub file: HostFile,
    /// Whether the guest may not write.
    pub readonly: bool,
    /// Its serial number; `None` for one that is made of what identifies the file.
    pub serial: Option<DiskSerial>,
}

/// A disk's serial number: 1 to 20 printable characters of ASCII (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSerial([u8; 20]);

/// A vsock: `socket=PATH[,cid=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The unix socket that stands for it on the host.
    pub socket: PathBuf,
    /// The guest's context id: at least 3.
    pub cid: u32,
}
