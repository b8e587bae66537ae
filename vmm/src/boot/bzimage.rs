//! A `bzImage`, entered by Linux' 64-bit boot protocol (Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::path::Path;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{Error, How, Initramfs, Loaded, huge_pages, memory_map, mib};
use crate::arch::x86_64::layout;
use crate::devices::virtio::GuestMemory;

/// Where the protected-mode part goes; the kernel moves itself from there.
const LOAD_ADDRESS: GuestAddress = GuestAddress(layout::HIGH_RAM_START);
/// The 64-bit entry point lies behind the 32-bit one.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the 64-bit entry point exists.
const XLF_KERNEL_64: u16 = 1;
/// `type_of_loader`: one without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Loads the protected-mode part.
pub(super) fn load(memory: &GuestMemory, mut file: File, path: &Path) -> Result<Loaded, Error> {
    let loaded = BzImage::load(memory, Some(LOAD_ADDRESS), &mut file, Some(LOAD_ADDRESS)).map_err(
        |source| Error::Load {
            path: path.into(),
            memory: mib(memory),
            source,
        },
    )?;
    let header = loaded
        .setup_header
        .filter(|header| header.xloadflags & XLF_KERNEL_64 != 0)
        .ok_or_else(|| Error::No64BitEntry(path.into()))?;
    // The kernel unpacks itself where it prefers to run, and needs `init_size` bytes there.
    let unpacked = header
        .pref_address
        .saturating_add(u64::from(header.init_size));
    huge_pages::want(
        memory,
        GuestAddress(header.pref_address),
        GuestAddress(unpacked),
    );
    let end = GuestAddress(loaded.kernel_end.max(unpacked));
    let entry = loaded.kernel_load.unchecked_add(ENTRY_64);
    Ok(Loaded {
        end,
        how: How::Linux64(entry, header),
    })
}

/// Writes the zero page that the entry point finds in RSI.
pub(super) fn write_zero_page(
    memory: &GuestMemory,
    map: &[memory_map::Range],
    header: setup_header,
    initramfs: Option<Initramfs>,
    rsdp: GuestAddress,
    cmdline_len: usize,
) -> Result<(), Error> {
    let mut params = boot_params {
        hdr: header,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE.raw_value() as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    params.acpi_rsdp_addr = rsdp.raw_value();
    if let Some(initramfs) = initramfs {
        // Below the hole, so 32 bits are enough.
        params.hdr.ramdisk_image = initramfs.start.raw_value() as u32;
        params.hdr.ramdisk_size = initramfs.size as u32;
    }
    for (entry, range) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
        params.e820_entries += 1;
    }
    Ok(memory.write_obj(params, layout::ZERO_PAGE)?)
}
