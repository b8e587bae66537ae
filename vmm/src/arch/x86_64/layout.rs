//! The guest-physical address space, and the port space.
//!
//! ```text
//! 0x0000_0000  boot structures (GDT, start info, zero page, page tables, command line)
//! 0x0009_fc00  end of low RAM as a PC reports it
//! 0x000e_0000  ACPI tables
//! 0x0010_0000  RAM: kernel from 16 MiB on, initramfs at the end
//! 0xc000_0000  32-bit hole: PCI BARs
//! 0xe000_0000    PCI configuration space (ECAM), bus 0
//! 0xe800_0000    a file to read, as persistent memory
//! 0xfec0_0000    IOAPIC
//! 0xfee0_0000    local APICs
//! 0xfffb_d000    TSS that KVM asks for (three pages)
//! 0x1_0000_0000  the rest of RAM
//! end of RAM   memory that comes and goes, from the next multiple of 2 GiB on
//! end of memory  64-bit PCI window
//! ```

use vm_memory::GuestAddress;

/// The GDT of the 64-bit boot protocol.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The PVH start info (`struct hvm_start_info`).
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// The PVH module list: the initramfs.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// The PVH memory map.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6100);
/// The zero page of the Linux boot protocol (`struct boot_params`).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The stack that the 64-bit boot protocol begins with; it grows down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The page tables of the 64-bit boot protocol: a PML4, a PDPT, four page directories.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line that Linux takes, with its final zero (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// The end of what a PC has as low RAM.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, from the RSDP on.
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// The room that they have.
pub const ACPI_SIZE: u64 = 0x2_0000;
/// The end of the first megabyte, where RAM goes on.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The hole below 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Its end.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// The window for 32-bit BARs.
pub const PCI_WINDOW_START: u64 = HOLE_START;
/// Its size.
pub const PCI_WINDOW_SIZE: u64 = ECAM_START - PCI_WINDOW_START;
/// PCI configuration space by memory accesses: 4 KiB a function.
pub const ECAM_START: u64 = 0xe000_0000;
/// Bus 0 alone: 32 devices of 8 functions.
pub const ECAM_SIZE: u64 = 32 * 8 * 4096;
/// Where [`memory::rom`](crate::memory::rom) lies: a section of Linux' memory map (128 MiB) has no other memory.
pub const ROM_START: u64 = 0xe800_0000;
/// The room that it has.
pub const ROM_SIZE: u64 = 256 << 20;
/// The IOAPIC's registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages for KVM, which needs them on some processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Where memory that comes and goes begins, for a guest that boots with `ram` bytes: where Linux' largest memory block could.
pub fn pluggable_start(ram: u64) -> GuestAddress {
    const ALIGNMENT: u64 = 2 << 30;
    let high = ram.saturating_sub(HOLE_START);
    GuestAddress(HOLE_END.saturating_add(high).next_multiple_of(ALIGNMENT))
}

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const SERIAL_GSI: u32 = 4;
/// The keyboard controller; all it does is reset.
pub const I8042_PORT: u16 = 0x60;
/// Data, a gap, and command: ports 0x60 to 0x64.
pub const I8042_SIZE: u16 = 5;
/// The ACPI registers of `devices::power`.
pub const POWER_PORT: u16 = 0x600;
/// Sleep control, sleep status, reset, events.
pub const POWER_SIZE: u16 = 4;
/// The interrupt that says that the power button was pressed.
pub const POWER_GSI: u32 = 5;
/// The registers of `devices::pci_hotplug`.
pub const PCI_HOTPLUG_PORT: u16 = 0x640;
/// The interrupt that says that devices have come or are to go.
pub const PCI_HOTPLUG_GSI: u32 = 6;
/// The registers of `devices::cpu_hotplug`.
pub const CPU_HOTPLUG_PORT: u16 = 0x680;
/// The interrupt that says that vCPUs have come or are to go.
pub const CPU_HOTPLUG_GSI: u32 = 7;
/// pvpanic's byte, where QEMU has it.
pub const PVPANIC_PORT: u16 = 0x505;
/// PCI configuration space by ports: address and data.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Four bytes of address, four of data.
pub const PCI_CONFIG_SIZE: u16 = 8;

/// The first of the IOAPIC's pins that PCI devices' interrupt lines end at.
const FIRST_LINE_GSI: u32 = 16;
/// How many there are.
const LINE_GSIS: u32 = 8;

/// Where the interrupt lines of the device with this number end. All of its functions' pins share one.
pub fn line_gsi(device: u8) -> u32 {
    FIRST_LINE_GSI + u32::from(device) % LINE_GSIS
}

/// The first interrupt number for MSI routes: those below belong to the IOAPIC's 24 pins.
pub const FIRST_MSI_GSI: u32 = 24;
