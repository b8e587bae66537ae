//! The VMMs that are compared, each started with the same kernel, initramfs, command line and size.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use orlop_testbed::host::emulator::Emulator;

/// The kernel's command line: that of `orlop run`, which spares the kernel what no VM has.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce \
     cryptomgr.notests tsc=reliable random.trust_cpu=1";

/// What a guest boots from, and its RAM.
pub struct Guest {
    /// An ELF kernel with a PVH entry point, which both VMMs take.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub memory_mib: u64,
}

/// A VMM.
pub enum Contender {
    /// With its program.
    Orlop(PathBuf),
    QemuMicrovm(Emulator),
}

impl Contender {
    /// What it is called in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Contender::Orlop(_) => "Orlop",
            Contender::QemuMicrovm(_) => "QEMU microvm",
        }
    }

    /// Starts `guest`, whose console goes to the file `console`.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn start(&self, guest: &Guest, console: &Path) -> Result<Child> {
        let mut command = match self {
            Contender::Orlop(program) => orlop(program, guest),
            Contender::QemuMicrovm(emulator) => qemu(emulator, guest),
        };
        let console = File::create(console)?;
        command
            .stdin(Stdio::null())
            .stderr(console.try_clone()?)
            .stdout(console)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))
    }
}

fn orlop(program: &Path, guest: &Guest) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--name", "bench", "--cpus", "1"]);
    command.args(["--memory", &format!("{}M", guest.memory_mib)]);
    command.arg("--kernel").arg(&guest.kernel);
    command.arg("--initramfs").arg(&guest.initramfs);
    command.args(["--cmdline", COMMAND_LINE]);
    command
}

/// The machine in its quickest setting: no PIT and no PIC, whose work the local APIC and the KVM clock do; its RTC, for a kernel without
/// one waits for it; no option ROMs, and no ACPI tables to make.
fn qemu(emulator: &Emulator, guest: &Guest) -> Command {
    let mut command = emulator.command();
    command.args([
        "-M",
        "microvm,accel=kvm,rtc=on,pit=off,pic=off,acpi=off,x-option-roms=off",
    ]);
    command.args(["-cpu", "host", "-smp", "1"]);
    command.args(["-m", &format!("{}M", guest.memory_mib)]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&guest.kernel);
    command.arg("-initrd").arg(&guest.initramfs);
    command.args(["-append", COMMAND_LINE]);
    command
}
