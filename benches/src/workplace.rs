//! Where VMMs are compared: their programs and the kernel that they boot, copied into memory, so that nothing waits for a disk.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use orlop_testbed::cache::Cache;
use orlop_testbed::host::emulator::Emulator;
use orlop_testbed::setup::build;
use tempfile::TempDir;

use crate::contender::{CLOUD_HYPERVISOR_VARIABLE, Contender, FIRECRACKER_VARIABLE};

/// The variable that names another kernel than our own.
const KERNEL_VARIABLE: &str = "KERNEL";

/// A directory in memory that goes when this is dropped.
pub struct Workplace {
    directory: TempDir,
    emulator: Emulator,
}

impl Workplace {
    /// Copies what was built.
    ///
    /// # Errors
    /// When something is missing, or does not fit.
    pub fn make() -> Result<Self> {
        let cache = Cache::open()?;
        let directory = tempfile::tempdir_in("/run")?;
        let here = |name| directory.path().join(name);
        match env::var_os(KERNEL_VARIABLE) {
            Some(kernel) => copy(Path::new(&kernel), &here("vmlinux"))
                .with_context(|| format!("{KERNEL_VARIABLE} names no kernel"))?,
            None => copy(&cache.own_vmlinux(), &here("vmlinux"))?,
        }
        copy(&build::programs_directory().join("orlop"), &here("orlop"))?;
        let emulator = match Emulator::unpacked(&cache.emulator()) {
            Some(_) => {
                copy(&cache.emulator(), &here("qemu"))?;
                Emulator::unpacked(&here("qemu")).context("the copy of QEMU is not whole")?
            }
            None => Emulator::installed(),
        };
        Ok(Self {
            directory,
            emulator,
        })
    }

    /// The path of something in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The kernel that is named, or that of our own: an ELF file with a PVH entry point.
    pub fn kernel(&self) -> PathBuf {
        self.path("vmlinux")
    }

    /// Orlop's VMM.
    pub fn orlop(&self) -> PathBuf {
        self.path("orlop")
    }

    /// The VMMs that are compared: Orlop first, QEMU's machines, and those that are named.
    ///
    /// # Errors
    /// As [`Workplace::named`].
    pub fn contenders(&self) -> Result<Vec<Contender>> {
        let mut contenders = vec![
            Contender::Orlop(self.orlop()),
            Contender::QemuMicrovm(self.emulator()),
            Contender::QemuQ35(self.emulator()),
        ];
        contenders.extend(self.named()?);
        Ok(contenders)
    }

    /// The VMMs whose programs are named in the environment.
    ///
    /// # Errors
    /// When such a program is not there.
    pub fn named(&self) -> Result<Vec<Contender>> {
        type Peer = (&'static str, fn(PathBuf) -> Contender);
        let peers: [Peer; 2] = [
            (FIRECRACKER_VARIABLE, Contender::Firecracker),
            (CLOUD_HYPERVISOR_VARIABLE, Contender::CloudHypervisor),
        ];
        let mut named = Vec::new();
        for (variable, contender) in peers {
            if let Some(program) = env::var_os(variable) {
                let here = self.path(&variable.to_lowercase());
                copy(Path::new(&program), &here)
                    .with_context(|| format!("{variable} names no program"))?;
                named.push(contender(here));
            }
        }
        Ok(named)
    }

    /// QEMU.
    pub fn emulator(&self) -> Emulator {
        self.emulator.clone()
    }
}

/// Copies a file or a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").args([from, to]))
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(())
}
