//! Puts a guest's initramfs together: the agent as `/init`, and the kernel modules that it loads.
//!
//! The modules lie in [`MODULES`], each behind its number in the load order, so that the agent need know no more than to load
//! what is there, by name. A kernel that has everything built in needs none, and the directory is left out.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::cpio::Writer;
use crate::{modules, signature};

/// The directory of the kernel modules in the initramfs, without leading slash.
pub const MODULES: &str = "modules";

/// What becomes of the modules' signatures; see [`signature`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    /// They are left out.
    Drop,
    /// They stay: for a kernel that loads no module without (CONFIG_MODULE_SIG_FORCE, or lockdown).
    Keep,
}

/// Why a file is not one that a guest could start with.
#[derive(Debug, thiserror::Error)]
pub enum NoAgent {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// It would not start as a guest's first process.
    #[error("{}: {why}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct Unreadable {
    path: PathBuf,
    source: io::Error,
}

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent would not start.
    #[error(transparent)]
    Agent(#[from] NoAgent),
    /// A module could not be read.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// A module is missing.
    #[error(transparent)]
    Modules(#[from] modules::Error),
    /// The archive could not be written.
    #[error("cannot write the initramfs: {0}")]
    Write(#[source] io::Error),
}

/// Writes an initramfs with the agent's binary `agent` and the modules of `modules` (`lib/modules/<version>`), if any, to `out`.
///
/// # Errors
/// When the agent is no static executable, a module is missing, or reading or writing fails.
pub fn build(
    agent: &Path,
    modules: Option<&Path>,
    signatures: Signatures,
    out: impl Write,
) -> Result<(), Error> {
    let binary = read_agent(agent)?;
    let modules = modules
        .map(|directory| modules::resolve(directory, &modules::GUEST))
        .transpose()?;

    let mut cpio = Writer::new(out);
    for directory in ["dev", "proc", "sys"] {
        cpio.directory(directory, 0o755).map_err(Error::Write)?;
    }
    if modules.is_some() {
        cpio.directory(MODULES, 0o755).map_err(Error::Write)?;
    }
    // The kernel opens it as the agent's stdin, stdout and stderr, before anything is mounted.
    cpio.character_device("dev/console", 0o600, (5, 1))
        .map_err(Error::Write)?;
    for (number, module) in modules.iter().flatten().enumerate() {
        let name = format!("{MODULES}/{number:02}-{}.ko", module.name);
        let content = read(&module.path)?;
        let content = match signatures {
            Signatures::Drop => signature::strip(&content),
            Signatures::Keep => &content,
        };
        cpio.file(&name, 0o644, content).map_err(Error::Write)?;
    }
    cpio.file("init", 0o755, &binary).map_err(Error::Write)?;
    cpio.finish().map_err(Error::Write)?;
    Ok(())
}

/// The agent's binary, if it is one that a guest can start with.
pub(crate) fn read_agent(path: &Path) -> Result<Vec<u8>, NoAgent> {
    let binary = read(path)?;
    match check_agent(&binary) {
        Ok(()) => Ok(binary),
        Err(why) => Err(NoAgent::Kind {
            path: path.to_owned(),
            why,
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Unreadable> {
    fs::read(path).map_err(|source| Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// There is no dynamic loader in the guest, so a binary that asks for one would end with a kernel panic at boot.
fn check_agent(binary: &[u8]) -> Result<(), &'static str> {
    const PT_INTERP: u32 = 3;
    let field = |at: usize, size: usize| -> Option<u64> {
        let bytes = binary.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    };
    if binary.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("is not an x86-64 executable");
    }
    let cut = "is a truncated executable";
    let headers = field(32, 8).ok_or(cut)?;
    let (size, count) = (field(54, 2).ok_or(cut)?, field(56, 2).ok_or(cut)?);
    for index in 0..count {
        let at = headers
            .checked_add(index * size)
            .and_then(|at| usize::try_from(at).ok())
            .ok_or(cut)?;
        if field(at, 4).ok_or(cut)? == u64::from(PT_INTERP) {
            return Err(
                "is linked dynamically; build the agent with RUSTFLAGS=\"-C target-feature=+crt-static\"",
            );
        }
    }
    Ok(())
}

/// What looks like an executable whose one segment is of this type.
#[cfg(test)]
fn elf(segment: u32) -> Vec<u8> {
    let mut file = vec![0; 64 + 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[32] = 64;
    file[54] = 56;
    file[56] = 1;
    file[64..68].copy_from_slice(&segment.to_le_bytes());
    file
}

/// What looks like one that needs no dynamic loader.
#[cfg(test)]
pub(crate) fn executable() -> Vec<u8> {
    elf(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_modules() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut dep = String::from("base.ko:\n");
        fs::write(dir.path().join("base.ko"), "base").unwrap();
        for name in modules::GUEST {
            dep += &format!("{name}.ko: base.ko\n");
            fs::write(dir.path().join(format!("{name}.ko")), name).unwrap();
        }
        fs::write(dir.path().join("modules.dep"), dep).unwrap();
        fs::write(dir.path().join("modules.builtin"), "").unwrap();
        dir
    }

    #[test]
    fn holds_the_agent_and_the_modules_in_order() {
        let dir = kernel_modules();
        let agent = dir.path().join("agent");
        fs::write(&agent, elf(1)).unwrap();
        let mut out = Vec::new();
        build(&agent, Some(dir.path()), Signatures::Drop, &mut out).unwrap();
        let text = String::from_utf8_lossy(&out);
        let places: Vec<_> = [
            "dev/console\0",
            "modules/00-base.ko\0",
            "modules/01-virtio_pci.ko\0",
            "init\0",
        ]
        .map(|name| text.find(name).unwrap())
        .into();
        assert!(places.is_sorted(), "{places:?}");
        let mut again = Vec::new();
        build(&agent, Some(dir.path()), Signatures::Drop, &mut again).unwrap();
        assert_eq!(out, again);
    }

    #[test]
    fn holds_no_modules_for_a_kernel_that_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, elf(1)).unwrap();
        let mut out = Vec::new();
        build(&agent, None, Signatures::Drop, &mut out).unwrap();
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("init\0"));
        assert!(!text.contains(MODULES));
    }

    #[test]
    fn refuses_an_agent_that_could_not_start() {
        let dir = kernel_modules();
        let agent = dir.path().join("agent");
        for (content, why) in [
            (elf(3), "linked dynamically"),
            (b"#!/bin/sh".to_vec(), "not an x86-64 executable"),
            (elf(1)[..70].to_vec(), ""),
            (elf(1)[..40].to_vec(), "truncated"),
        ] {
            fs::write(&agent, content).unwrap();
            match build(&agent, Some(dir.path()), Signatures::Keep, Vec::new()) {
                Err(error) => assert!(error.to_string().contains(why), "{error}"),
                Ok(()) => assert!(why.is_empty()),
            }
        }
    }

    #[test]
    fn a_module_that_cannot_be_read_is_named() {
        let dir = kernel_modules();
        fs::remove_file(dir.path().join("virtiofs.ko")).unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, elf(1)).unwrap();
        let error = build(&agent, Some(dir.path()), Signatures::Keep, Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("virtiofs.ko"), "{error}");
    }
}
