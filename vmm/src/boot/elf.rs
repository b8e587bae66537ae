//! An ELF `vmlinux`: entered by PVH (`xen/include/public/arch-x86/hvm/start_info.h`) where it has such an entry point, else by Linux'
//! 64-bit boot protocol at its own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use vm_memory::{Address, Bytes, GuestAddress};

use super::image_file::ImageFile;
use super::{Error, How, Initramfs, Loaded, huge_pages, memory_map, mib};
use crate::arch::x86_64::layout;
use crate::devices::virtio::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`
const START_MAGIC: u32 = 0x336e_c578;
/// The version of `hvm_start_info` that has a memory map.
const START_VERSION: u32 = 1;

/// Loads the segments, and finds the way in.
pub(super) fn load(memory: &GuestMemory, file: File, path: &Path) -> Result<Loaded, Error> {
    let mut file = ImageFile::new(file, memory).map_err(|source| Error::Read {
        what: "kernel",
        path: path.into(),
        source,
    })?;
    check_machine(&mut file, path)?;
    let loaded = Elf::load(
        memory,
        None,
        &mut file,
        Some(GuestAddress(layout::HIGH_RAM_START)),
    )
    .map_err(|source| Error::Load {
        path: path.into(),
        memory: mib(memory),
        source,
    })?;
    let end = GuestAddress(loaded.kernel_end);
    // What is not in the file as well.
    huge_pages::want(memory, loaded.kernel_load, end);
    let how = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => How::Pvh(entry),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            How::Linux64(loaded.kernel_load, header())
        }
    };
    Ok(Loaded { end, how })
}

/// What a `bzImage` brings with it and an ELF file does not: the setup header of a kernel that lies where it runs.
fn header() -> setup_header {
    /// `boot_flag` and `header`, by which a setup header is known.
    const BOOT_FLAG: u16 = 0xaa55;
    const HEADER: u32 = u32::from_le_bytes(*b"HdrS");
    /// The alignment that every 64-bit Linux is content with.
    const ALIGNMENT: u32 = 0x100_0000;
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER,
        kernel_alignment: ALIGNMENT,
        ..Default::default()
    }
}

/// Writes the start info that the entry point finds in EBX.
pub(super) fn write_start_info(
    memory: &GuestMemory,
    map: &[memory_map::Range],
    initramfs: Option<Initramfs>,
    rsdp: GuestAddress,
) -> Result<(), Error> {
    let mut at = layout::PVH_MEMORY_MAP;
    for range in map {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, at)?;
        at = at.unchecked_add(size_of::<hvm_memmap_table_entry>() as u64);
    }
    let mut start = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        cmdline_paddr: layout::CMDLINE.raw_value(),
        rsdp_paddr: rsdp.raw_value(),
        memmap_paddr: layout::PVH_MEMORY_MAP.raw_value(),
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initramfs) = initramfs {
        let module = hvm_modlist_entry {
            paddr: initramfs.start.raw_value(),
            size: initramfs.size,
            ..Default::default()
        };
        memory.write_obj(module, layout::PVH_MODULES)?;
        start.nr_modules = 1;
        start.modlist_paddr = layout::PVH_MODULES.raw_value();
    }
    Ok(memory.write_obj(start, layout::PVH_START_INFO)?)
}

/// Refuses an ELF file that is not for x86-64 by its `e_machine` field.
fn check_machine(file: &mut ImageFile, path: &Path) -> Result<(), Error> {
    const E_MACHINE: u64 = 18;
    const EM_X86_64: u16 = 62;
    let failed = |source| Error::Read {
        what: "kernel",
        path: path.into(),
        source,
    };
    let mut machine = [0; 2];
    file.seek(SeekFrom::Start(E_MACHINE)).map_err(failed)?;
    file.read_exact(&mut machine).map_err(failed)?;
    let name = match u16::from_le_bytes(machine) {
        EM_X86_64 => return Ok(()),
        3 => "i386".into(),
        40 => "arm".into(),
        183 => "arm64".into(),
        243 => "riscv".into(),
        other => format!("ELF machine {other}"),
    };
    Err(Error::Architecture {
        path: path.into(),
        machine: name,
    })
}
