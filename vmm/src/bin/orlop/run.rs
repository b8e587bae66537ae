//! `orlop run`: from the arguments to a VM, and from the VM's end to an exit status.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use orlop_vmm::config::{
    BalloonConfig, ConsoleConfig, ConsoleDevice, CpusConfig, DiskConfig, HostDeviceConfig,
    HostFile, KernelConfig, MOVABLE_MEMORY, MemoryConfig, NetConfig, ShareConfig, TapConfig,
    VmConfig, VmName, VsockConfig,
};
use orlop_vmm::vm::{self, Outcome};

use crate::container::flags::Flags;
use crate::detach::{self, Background, Side};
use crate::resources;
use crate::virtiofsd;

/// What `orlop run --help` ends with.
pub const AFTER_HELP: &str = "\
Exit status:
  0 the guest powered itself off, 1 the VM could not run, 2 the arguments are wrong, 3 the guest reset itself (--no-reboot),
  4 the guest failed beyond its own repair (triple fault), 5 the guest's kernel panicked, 137 the VM was killed

Examples:
  orlop run --kernel vmlinux --initramfs initramfs.cpio
  orlop run --kernel vmlinuz --disk path=root.img --cmdline 'console=ttyS0 root=/dev/vda' --cpus 2 --memory 1G
  orlop run --kernel vmlinux --initramfs initramfs.cpio --net tap=orlop0
  orlop run --kernel vmlinux --initramfs initramfs.cpio --fs tag=src,path=.    # in the guest: mount -t virtiofs src /mnt
  orlop run -d --name web --kernel vmlinux --disk path=root.img --cmdline 'console=ttyS0 root=/dev/vda' && orlop console web
  orlop run --kernel vmlinux --initramfs initramfs.cpio --console file=vm.log --vsock socket=/run/vm.sock
  orlop run -it --image busybox.tar -- sh

With --image the exit status is that of the command: 128 + the signal's number if one ended it, 125 if the VM or the image failed,
  126 if the command cannot be executed, 127 if there is none of that name";

/// The flags of `orlop run`.
#[derive(Args)]
pub struct Arguments {
    /// What to call the VM [default: vm-PID]
    #[arg(long)]
    pub(crate) name: Option<VmName>,
    /// The kernel: an ELF vmlinux or a bzImage, told by its path or by a descriptor that is open already [default with --image: the one that the shim is configured with]
    #[arg(long, value_name = "FILE|fd=N", required_unless_present = "image")]
    pub(crate) kernel: Option<HostFile>,
    /// The initramfs [default with --image: as for the kernel]
    #[arg(long, value_name = "FILE|fd=N")]
    pub(crate) initramfs: Option<HostFile>,
    /// A file that the guest reads as persistent memory, /dev/pmem0: all VMs with the same file have its pages once, which are the host's, and none of
    /// their memory is used for it
    #[arg(long, value_name = "FILE|fd=N")]
    pub(crate) pmem: Option<HostFile>,
    /// The kernel's whole command line, in place of one that boots quickly and names the console
    #[arg(long, value_name = "STRING")]
    pub(crate) cmdline: Option<String>,
    /// Processors; with max, `orlop resize` can change how many they are
    #[arg(long, value_name = "N[,max=N]", default_value = "1")]
    cpus: CpusConfig,
    /// Memory, as 256M or 4G; with max, `orlop resize` can add as much and take it back; in a file that vhost-user backends can map, as shared
    /// directories that come later need; in huge pages of the host's, which stay the VM's to its end
    #[arg(
        long,
        value_name = "SIZE[,max=SIZE][,shared][,hugepages=2M|1G]",
        default_value = "256M"
    )]
    memory: MemoryConfig,
    /// A disk: a raw image of whole sectors of 512 bytes, or a block device, which is told by its path or by a descriptor that is open
    /// already; with a serial number of its own if it is to have one (repeatable)
    #[arg(long = "disk", value_name = "path=FILE|fd=N[,readonly][,serial=TEXT]")]
    pub(crate) disks: Vec<DiskConfig>,
    /// A network card on a tap of the host, which is told by its name, and made if it is absent, or by descriptors that are open
    /// already, one for each pair of queues; with a MAC address of its own if it is to have one; carried by the host's kernel where it has
    /// vhost-net, unless this must be or must not (repeatable)
    #[arg(
        long = "net",
        value_name = "tap=NAME[,queues=N]|fd=N[:N...][,mac=MAC][,vhost=auto|on|off]"
    )]
    nets: Vec<NetConfig>,
    /// Where the console goes, beside `orlop console` [default: stdio, or null with --detach]
    #[arg(long, value_name = "stdio|null|pty|file=FILE")]
    pub(crate) console: Option<ConsoleConfig>,
    /// Which device the console is: the serial port (ttyS0), or a virtio-console (hvc0), which is quicker and as large as the terminal
    #[arg(long, value_name = "serial|virtio", default_value = "serial")]
    console_device: ConsoleDevice,
    /// Print the VM's name when its guest boots, and let it run on in the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Make the VM, and have its guest wait for `orlop boot`
    #[arg(long)]
    no_boot: bool,
    /// End with status 3 when the guest resets itself, rather than boot it again
    #[arg(long)]
    pub(crate) no_reboot: bool,
    /// The socket on which the VM is controlled [default: NAME.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// A vsock, with the unix socket that stands for it here
    #[arg(long, value_name = "socket=PATH[,cid=N]")]
    pub(crate) vsock: Option<VsockConfig>,
    /// A directory that the guest shares, and mounts by the tag (virtio-fs): a virtiofsd is started for it; or one that is there already and
    /// listens on a socket (repeatable)
    #[arg(
        long = "fs",
        value_name = "tag=TAG,path=DIRECTORY[,readonly]|tag=TAG,socket=PATH"
    )]
    pub(crate) shares: Vec<ShareConfig>,
    /// The virtiofsd that is started [default: ORLOP_VIRTIOFSD, or else /usr/libexec/virtiofsd, or else that in PATH]
    #[arg(long, value_name = "FILE")]
    pub virtiofsd: Option<PathBuf>,
    /// Whether the host gets back what the guest does not use (virtio-balloon); with a size, the guest gives up as much beyond that, and
    /// takes of it what it needs before it runs out of memory
    #[arg(long, value_name = "on|off|size=SIZE", default_value = "on")]
    balloon: BalloonConfig,
    /// A PCI device of the host's, told by its address there, for the guest alone (VFIO); its memory then stays in the host's, and there is no
    /// balloon (repeatable)
    #[arg(long = "device", value_name = "ADDRESS[,id=NAME][,fd=N[,iommu=N]]")]
    host_devices: Vec<HostDeviceConfig>,
    #[command(flatten)]
    pub(crate) container: Flags,
}

impl Arguments {
    /// What the guest's kernel is told.
    pub(crate) fn cmdline(&self) -> String {
        let default = || default_cmdline(self.console_device, self.memory);
        self.cmdline.clone().unwrap_or_else(default)
    }

    /// The VM, still without shared directories.
    fn into_config(self) -> anyhow::Result<VmConfig> {
        let cmdline = self.cmdline();
        let name = match self.name {
            Some(name) => name,
            None => format!("vm-{}", std::process::id()).parse()?,
        };
        let taps = self.nets.iter().flat_map(|net| match &net.tap {
            TapConfig::Given(fds) => fds.as_slice(),
            TapConfig::Named(..) => &[],
        });
        let files = self.disks.iter().map(|disk| &disk.file);
        let files = files
            .chain(&self.kernel)
            .chain(&self.initramfs)
            .chain(&self.pmem);
        let mut seen = BTreeSet::new();
        for fd in taps.copied().chain(files.filter_map(HostFile::given)) {
            // Cards would take each other's packets; disks would share a lock.
            anyhow::ensure!(
                seen.insert(fd),
                "descriptor {fd} is given twice: each --kernel, --initramfs, --pmem, --net and --disk has descriptors of its own"
            );
        }
        let mut tags = BTreeSet::new();
        for share in &self.shares {
            let tag = share.tag();
            // The guest's driver takes the first and fails with the other.
            anyhow::ensure!(
                tags.insert(tag),
                "two shared directories have the tag {tag}: each --fs has a tag of its own"
            );
        }
        let console = match (self.detach, self.console) {
            (false, console) => console.unwrap_or(ConsoleConfig::Stdio),
            (true, Some(ConsoleConfig::Stdio)) => anyhow::bail!(
                "a VM in the background has no terminal: leave out --console, and use `orlop console {}`",
                name.as_str()
            ),
            (true, console) => console.unwrap_or(ConsoleConfig::Null),
        };
        if let BalloonConfig::On(size) = self.balloon {
            anyhow::ensure!(
                size < self.memory.size.bytes(),
                "the balloon cannot have {}M of {} of memory: give it less with --balloon size=SIZE",
                size >> 20,
                self.memory.size
            );
            anyhow::ensure!(
                size == 0 || self.memory.backing.hugepages.is_none(),
                "huge pages stay the VM's, whatever its guest gives up: leave out --balloon size=, or hugepages="
            );
        }
        let mut given = BTreeSet::new();
        for device in &self.host_devices {
            let address = device.address;
            anyhow::ensure!(
                given.insert(address),
                "{address} is given twice: leave out one --device"
            );
        }
        if let (BalloonConfig::On(size), false) = (self.balloon, self.host_devices.is_empty()) {
            anyhow::ensure!(
                size == 0,
                "the memory of a VM with a device of the host's stays where it is: leave out --balloon size=, or --device"
            );
        }
        Ok(VmConfig {
            name,
            kernel: KernelConfig {
                kernel: self
                    .kernel
                    .ok_or_else(|| anyhow::anyhow!("no kernel is given: give one with --kernel"))?,
                initramfs: self.initramfs,
                cmdline,
            },
            vcpus: self.cpus,
            memory: self.memory,
            pmem: self.pmem,
            disks: self.disks,
            nets: self.nets,
            console,
            boots: !self.no_boot,
            console_device: self.console_device,
            reboot: !self.no_reboot,
            api_socket: self.api_socket,
            vsock: self.vsock,
            fs: Vec::new(),
            balloon: self.balloon,
            host_devices: self.host_devices,
        })
    }
}

fn default_cmdline(console: ConsoleDevice, memory: MemoryConfig) -> String {
    let grows = memory.pluggable() > 0;
    console.default_cmdline() + if grows { MOVABLE_MEMORY } else { "" }
}

/// Runs a VM to its end.
///
/// # Errors
/// When the VM cannot be made, or cannot go on.
pub fn run(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    let background = if arguments.detach {
        match detach::fork()? {
            Side::Caller(exit) => return Ok(exit),
            Side::Vmm(background) => Some(background),
        }
    } else {
        None
    };
    resources::share_one_heap();
    resources::raise_open_files();
    let (shares, program) = (arguments.shares.clone(), arguments.virtiofsd.take());
    let config = arguments.into_config()?;
    let (fs, backends) = virtiofsd::serve(shares, program)?;
    let config = VmConfig { fs, ..config };
    let log = background.is_some().then(|| Background::log(&config.name));
    let heard = backends.share();
    let outcome = vm::run(config, move |config, pty| {
        let name = &config.name;
        if let Some(pty) = pty {
            eprintln!(
                "orlop: the console of {} is {}",
                name.as_str(),
                pty.display()
            );
        }
        heard.listen()?;
        match background {
            Some(background) => background.go(name),
            None => Ok(()),
        }
    });
    let outcome = backends.end(outcome)?;
    if let (Some(log), Outcome::PoweredOff | Outcome::Reset | Outcome::Killed) = (log, &outcome) {
        // One that is gone already is what is wanted.
        let _ = log.remove();
    }
    if outcome != Outcome::PoweredOff {
        // Whoever would read it may be gone.
        let _ = writeln!(io::stderr(), "orlop: {outcome}");
    }
    Ok(ExitCode::from(outcome.exit_status()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use orlop_vmm::config::{DEFAULT_CMDLINE, HugePages};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: Arguments,
    }

    fn config(words: &[&str]) -> Result<VmConfig, clap::Error> {
        let line = Line::try_parse_from(["run"].iter().chain(words))?;
        Ok(line.run.into_config().unwrap())
    }

    #[test]
    fn a_kernel_is_enough() {
        let config = config(&["--kernel", "vmlinux"]).unwrap();
        assert_eq!(config.vcpus.boot.get(), 1);
        assert_eq!(config.memory.size.bytes(), 256 << 20);
        assert_eq!(config.console, ConsoleConfig::Stdio);
        assert_eq!(config.console_device, ConsoleDevice::Serial);
        assert_eq!(config.balloon, BalloonConfig::On(0));
        assert_eq!(config.kernel.cmdline, DEFAULT_CMDLINE);
        assert!(config.name.as_str().starts_with("vm-"));
        assert!(super::super::Arguments::try_parse_from(["orlop", "run"]).is_err());
    }

    #[test]
    fn every_flag_arrives() {
        let config = config(&[
            "--name=web",
            "--kernel=k",
            "--initramfs=i",
            "--cmdline=",
            "--cpus=2",
            "--memory=1G,hugepages=2M",
            "--disk=path=a",
            "--disk=path=b,readonly,serial=root",
            "--net=tap=orlop0,queues=2",
            "--net=fd=9,mac=02:00:00:00:00:01",
            "--console=pty",
            "--console-device=virtio",
            "--api-socket=s",
            "--vsock=socket=v,cid=7",
            "--fs=tag=t,socket=f",
            "--fs=tag=u,path=/srv,readonly",
            "--virtiofsd=/usr/bin/virtiofsd",
            "--balloon=off",
        ])
        .unwrap();
        assert_eq!(config.kernel.cmdline, "");
        assert_eq!(config.disks.len(), 2);
        assert!(config.disks[1].readonly);
        assert!(config.disks[1].serial.is_some());
        assert_eq!(config.nets.len(), 2);
        assert!(config.nets[1].mac.is_some());
        assert_eq!(config.console, ConsoleConfig::Pty);
        assert_eq!(config.console_device, ConsoleDevice::Virtio);
        assert_eq!(config.vsock.unwrap().cid, 7);
        assert_eq!(config.memory.backing.hugepages, Some(HugePages::Of2M));
        assert_eq!(config.balloon, BalloonConfig::Off);
    }

    #[test]
    fn a_vm_in_the_background_has_no_terminal() {
        let detached = config(&["--kernel=k", "-d"]).unwrap();
        assert_eq!(detached.console, ConsoleConfig::Null);
        let line = Line::try_parse_from(["run", "--kernel=k", "-d", "--console=stdio"]).unwrap();
        let error = line.run.into_config().unwrap_err().to_string();
        assert!(error.contains("orlop console"), "{error}");
    }

    #[test]
    fn the_kernel_is_told_which_device_its_console_is() {
        let config = config(&["--kernel=k", "--console-device=virtio"]).unwrap();
        let cmdline = config.kernel.cmdline;
        assert!(cmdline.starts_with("console=hvc0 quiet"), "{cmdline}");
        assert!(!cmdline.contains("ttyS0"), "{cmdline}");
    }

    #[test]
    fn two_directories_do_not_share_a_tag() {
        let line = [
            "run",
            "--kernel=k",
            "--fs=tag=a,path=/",
            "--fs=tag=a,socket=s",
        ];
        let line = Line::try_parse_from(line).unwrap();
        let error = line.run.into_config().unwrap_err().to_string();
        assert!(error.contains("the tag a"), "{error}");
    }

    #[test]
    fn what_is_in_huge_pages_is_not_given_up() {
        let line = [
            "run",
            "--kernel=k",
            "--memory=1G,hugepages=1G",
            "--balloon=size=1M",
        ];
        let line = Line::try_parse_from(line).unwrap();
        let error = line.run.into_config().unwrap_err().to_string();
        assert!(error.contains("hugepages="), "{error}");
    }

    #[test]
    fn two_cards_do_not_share_a_descriptor() {
        let line = ["run", "--kernel=k", "--net=fd=9:10", "--net=fd=10"];
        let line = Line::try_parse_from(line).unwrap();
        let error = line.run.into_config().unwrap_err().to_string();
        assert!(error.contains("descriptor 10"), "{error}");
    }

    #[test]
    fn a_balloon_does_not_take_all_memory() {
        let line = ["run", "--kernel=k", "--balloon=size=256M"];
        let line = Line::try_parse_from(line).unwrap();
        let error = line.run.into_config().unwrap_err().to_string();
        assert!(error.contains("256M of 256M"), "{error}");
    }

    #[test]
    fn wrong_values_say_what_is_right() {
        for (flag, hint) in [
            ("--cpus=0", "1 to 255"),
            ("--memory=1", "whole MiB"),
            ("--disk=a", "path=FILE"),
            ("--net=orlop0", "tap=NAME"),
            ("--console=tty", "stdio, null, pty or file=FILE"),
            ("--console-device=hvc0", "serial or virtio"),
            ("--balloon=64M", "on, off or size=SIZE"),
            ("--fs=tag=t", "path=DIRECTORY"),
            ("--memory=1G,hugepages=4K", "2M or 1G"),
            ("--name=a/b", "begins with a letter"),
        ] {
            let error = config(&["--kernel=k", flag]).err().unwrap().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
