//! The VMMs that are compared, each started with the same kernel, size and command line.

mod cloud_hypervisor;
mod firecracker;
mod orlop;
mod qemu;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use orlop_testbed::host::emulator::Emulator;

use crate::group::Group;

/// The kernel's command line: that of `orlop run`, which spares the kernel what no VM has.
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce \
     cryptomgr.notests tsc=reliable random.trust_cpu=1 percpu_alloc=page";

/// What a guest boots from, its vCPUs and its RAM.
#[derive(Clone)]
pub struct Guest {
    /// An ELF kernel with a PVH entry point, which all VMMs take, in a directory where something may lie beside it.
    pub kernel: PathBuf,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub content: Content,
    /// Whether anything in it is to happen by itself: see [`qemu::microvm`].
    pub needs_timer: bool,
}

/// What a guest has beside kernel and RAM.
#[derive(Clone)]
pub enum Content {
    /// No more.
    Nothing,
    /// An initramfs, and no device.
    Initramfs(PathBuf),
    /// A root disk, and a device of each kind.
    Devices(Devices),
}

/// The host's ends of a guest's devices.
#[derive(Clone)]
pub struct Devices {
    /// The image of the root file system, for reading.
    pub root: PathBuf,
    /// The image of another disk.
    pub disk: PathBuf,
    /// The name of the network card's tap.
    pub tap: String,
    /// The unix socket by which a guest is reached by vsock. QEMU's have the kernel's vsock.
    pub vsock: PathBuf,
    /// The socket of a virtiofsd, whose file system has the tag [`TAG`].
    pub fs: PathBuf,
    /// What the guest is to do, at the end of its kernel's command line.
    pub order: String,
}

/// The tag of the shared file system.
pub const TAG: &str = "shared";

/// The context id of a guest with a vsock.
const CID: u32 = 3;

impl Guest {
    /// The kernel's command line, with where its root file system is.
    fn command_line(&self) -> String {
        match &self.content {
            Content::Nothing | Content::Initramfs(_) => COMMAND_LINE.to_owned(),
            Content::Devices(devices) => {
                format!(
                    "{COMMAND_LINE} root=/dev/vda rootfstype=erofs ro init=/init {}",
                    devices.order
                )
            }
        }
    }
}

/// A VMM.
pub enum Contender {
    /// With its program.
    Orlop(PathBuf),
    /// QEMU's machine for quick starts.
    QemuMicrovm(Emulator),
    /// QEMU's machine for everything.
    QemuQ35(Emulator),
    /// With its program.
    Firecracker(PathBuf),
    /// With its program.
    CloudHypervisor(PathBuf),
}

/// The variables that name peers' programs.
pub const FIRECRACKER_VARIABLE: &str = "FIRECRACKER";
/// See above.
pub const CLOUD_HYPERVISOR_VARIABLE: &str = "CLOUD_HYPERVISOR";

impl Contender {
    /// What it is called in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Contender::Orlop(_) => "Orlop",
            Contender::QemuMicrovm(_) => "QEMU microvm",
            Contender::QemuQ35(_) => "QEMU q35",
            Contender::Firecracker(_) => "Firecracker",
            Contender::CloudHypervisor(_) => "Cloud Hypervisor",
        }
    }

    /// Starts `guest`, whose console goes to the file `console`.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn start(&self, guest: &Guest, console: &Path) -> Result<Vmm> {
        start(&mut self.command(guest)?, console).map(Vmm)
    }

    /// The same in a control group.
    ///
    /// # Errors
    /// As [`Contender::start`].
    pub fn start_in(&self, group: &Group, guest: &Guest, console: &Path) -> Result<Vmm> {
        start(&mut group.enter(&self.command(guest)?), console).map(Vmm)
    }

    /// The command that starts `guest`.
    ///
    /// # Errors
    /// When what it reads cannot be written.
    pub fn command(&self, guest: &Guest) -> Result<Command> {
        Ok(match self {
            Contender::Orlop(program) => orlop::command(program, guest),
            Contender::QemuMicrovm(emulator) => qemu::microvm(emulator, guest),
            Contender::QemuQ35(emulator) => qemu::q35(emulator, guest),
            Contender::Firecracker(program) => firecracker::command(program, guest)?,
            Contender::CloudHypervisor(program) => cloud_hypervisor::command(program, guest),
        })
    }

    /// What its program says of its version.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn version(&self) -> Result<String> {
        let mut command = match self {
            Contender::QemuMicrovm(emulator) | Contender::QemuQ35(emulator) => emulator.command(),
            Contender::Orlop(program)
            | Contender::Firecracker(program)
            | Contender::CloudHypervisor(program) => Command::new(program),
        };
        let output = command.arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", self.name()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }
}

/// What was compared, and on what.
///
/// # Errors
/// When a program cannot be run.
pub fn versions<'a>(contenders: impl IntoIterator<Item = &'a Contender>) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut text = format!("\nhost kernel: {}\n", kernel.trim());
    for contender in contenders {
        text.push_str(&format!("{}: {}\n", contender.name(), contender.version()?));
    }
    Ok(text)
}

/// A program that writes what it says to the file `log`.
///
/// # Errors
/// When it cannot be run.
pub fn start(command: &mut Command, log: &Path) -> Result<Child> {
    let log = File::create(log)?;
    command
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// A running VMM, or another program, that is killed when this is dropped.
pub struct Vmm(pub Child);

impl Vmm {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it has not after `limit`, or it has failed.
    pub fn wait(mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("it ended with {status}"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        bail!("it runs still after {} s", limit.as_secs());
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a console ends, for who looks for a fault.
pub fn last_words(console: &Path) -> String {
    let said = fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().rev().take(5).collect();
    format!("the console ends, backwards, with {lines:?}")
}
