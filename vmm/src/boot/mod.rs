//! From a kernel file to a vCPU's first instruction.
//!
//! An ELF `vmlinux` with a PVH note is entered by PVH; one without it, and a `bzImage`, by Linux' 64-bit boot protocol. Both are told of the same
//! memory map, command line, initramfs and ACPI tables.

mod bzimage;
mod elf;
mod huge_pages;
mod image_file;
mod memory_map;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use self::image_file::ImageFile;
use crate::arch::x86_64::layout;
use crate::arch::x86_64::regs::{self, Entry};
use crate::config::{HostFile, KernelConfig};
use crate::devices::virtio::GuestMemory;

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {what} {path}")]
    Read {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is neither ELF nor bzImage.
    #[error(
        "kernel {0} is neither an ELF vmlinux nor an x86 bzImage; pass one of the two to --kernel"
    )]
    Format(PathBuf),
    /// It is for another machine.
    #[error("kernel {path} is for another architecture ({machine}); this VMM runs x86-64 kernels")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The machine that it names.
        machine: String,
    },
    /// It is damaged, or does not fit.
    #[error("kernel {path} is damaged or does not fit into the VM's {memory} MiB of memory")]
    Load {
        /// The file.
        path: PathBuf,
        /// The VM's memory.
        memory: u64,
        /// What the loader found.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// It has no 64-bit entry.
    #[error("kernel {0} has no 64-bit entry point; a 64-bit Linux of at least 3.8 is needed")]
    No64BitEntry(PathBuf),
    /// No room for the initramfs.
    #[error(
        "initramfs {path} ({size} bytes) does not fit beside the kernel into the VM's {memory} MiB of memory; give it more with --memory"
    )]
    InitramfsSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The VM's memory.
        memory: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {0} bytes, and Linux takes {max}; shorten --cmdline", max = layout::CMDLINE_MAX - 1)]
    CmdlineLength(usize),
    /// The command line would end early.
    #[error("the kernel command line contains a zero byte")]
    CmdlineZero,
    /// Something did not fit into guest memory.
    #[error("the boot structures do not fit into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The boot page tables.
    #[error(transparent)]
    Registers(#[from] regs::Error),
}

/// Where the initramfs lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Its first byte.
    pub start: GuestAddress,
    /// Its size in bytes.
    pub size: u64,
}

/// Loads kernel, initramfs and command line, and says how the kernel is to be entered. `rom` is where the guest finds persistent memory, if it does,
/// `rsdp` where the ACPI tables begin.
///
/// # Errors
/// A line that says which file is wrong, how, and what to do.
pub fn load(
    memory: &GuestMemory,
    config: &KernelConfig,
    rom: Option<Range<u64>>,
    rsdp: GuestAddress,
) -> Result<Entry, Error> {
    write_cmdline(memory, &config.cmdline)?;
    let path = &config.kernel.name();
    let mut file = open("kernel", &config.kernel)?;
    let loaded = match Format::of(&mut file, path)? {
        Format::Elf => elf::load(memory, file, path)?,
        Format::BzImage => bzimage::load(memory, file, path)?,
    };
    let initramfs = match &config.initramfs {
        Some(file) => Some(load_initramfs(memory, file, loaded.end)?),
        None => None,
    };
    huge_pages::want_for_linux(memory, initramfs);
    let map = memory_map::of(memory, rom);
    match loaded.how {
        How::Pvh(entry) => {
            elf::write_start_info(memory, &map, initramfs, rsdp)?;
            Ok(Entry::Pvh(entry))
        }
        How::Linux64(entry, header) => {
            bzimage::write_zero_page(memory, &map, header, initramfs, rsdp, config.cmdline.len())?;
            regs::write_long_mode_tables(memory)?;
            Ok(Entry::Linux64(entry))
        }
    }
}

/// A kernel in guest memory.
struct Loaded {
    /// The first address behind it.
    end: GuestAddress,
    how: How,
}

enum How {
    Pvh(GuestAddress),
    Linux64(GuestAddress, linux_loader::loader::bootparam::setup_header),
}

enum Format {
    Elf,
    BzImage,
}

impl Format {
    /// Tells the formats apart by their magic numbers.
    fn of(file: &mut File, path: &Path) -> Result<Self, Error> {
        /// Up to the end of the bzImage's `header` field at 0x202.
        const HEAD: u64 = 0x206;
        /// An arm64 `Image` says so at 0x38 (Documentation/arch/arm64/booting.rst).
        const ARM64: &[u8] = b"ARM\x64";
        let mut head = Vec::new();
        file.take(HEAD)
            .read_to_end(&mut head)
            .map_err(|source| Error::Read {
                what: "kernel",
                path: path.into(),
                source,
            })?;
        if head.starts_with(b"\x7fELF") {
            Ok(Format::Elf)
        } else if head.get(0x202..) == Some(b"HdrS") {
            Ok(Format::BzImage)
        } else if head.get(0x38..0x3c) == Some(ARM64) {
            Err(Error::Architecture {
                path: path.into(),
                machine: "arm64".into(),
            })
        } else {
            Err(Error::Format(path.into()))
        }
    }
}

fn open(what: &'static str, file: &HostFile) -> Result<File, Error> {
    file.open().map_err(|source| Error::Read {
        what,
        path: file.name(),
        source,
    })
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), Error> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(Error::CmdlineLength(cmdline.len()));
    }
    if cmdline.contains('\0') {
        return Err(Error::CmdlineZero);
    }
    let mut bytes = Vec::with_capacity(cmdline.len() + 1);
    bytes.extend_from_slice(cmdline.as_bytes());
    bytes.push(0);
    Ok(memory.write_slice(&bytes, layout::CMDLINE)?)
}

/// Puts the initramfs at the end of the RAM below the hole, behind the kernel.
fn load_initramfs(
    memory: &GuestMemory,
    file: &HostFile,
    kernel_end: GuestAddress,
) -> Result<Initramfs, Error> {
    const PAGE: u64 = 4096;
    let path = &file.name();
    let failed = |source| Error::Read {
        what: "initramfs",
        path: path.into(),
        source,
    };
    let file = open("initramfs", file)?;
    let mut file = ImageFile::new(file, memory).map_err(failed)?;
    let size = file.len();
    let ram_end = low_ram_end(memory);
    let start = ram_end
        .checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel_end.raw_value())
        .ok_or_else(|| Error::InitramfsSize {
            path: path.into(),
            size,
            memory: mib(memory),
        })?;
    let start = GuestAddress(start);
    // usize: x86_64 only.
    memory
        .read_exact_volatile_from(start, &mut file, size as usize)
        .map_err(|error| {
            failed(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                error.to_string(),
            ))
        })?;
    Ok(Initramfs { start, size })
}

/// The end of the RAM below the 32-bit hole.
fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory
        .last_addr()
        .raw_value()
        .saturating_add(1)
        .min(layout::HOLE_START)
}

/// The guest's memory in MiB, for messages.
fn mib(memory: &GuestMemory) -> u64 {
    use vm_memory::GuestMemoryRegion;
    memory.iter().map(|region| region.len()).sum::<u64>() >> 20
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
