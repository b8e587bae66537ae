//! The state in which a vCPU enters the kernel, by boot protocol.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestAddress};

use super::layout;
use crate::devices::virtio::GuestMemory;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode without paging, EBX at the start info (Xen's `pvh.pandoc`).
    Pvh(GuestAddress),
    /// Linux' 64-bit boot protocol: long mode, identity-mapped, RSI at the zero page (Documentation/arch/x86/boot.rst).
    Linux64(GuestAddress),
}

/// Why a vCPU could not be brought into its first state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM did not take it.
    #[error("KVM did not take the vCPU's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// The page tables or the GDT could not be written.
    #[error("the boot page tables do not fit into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The list of MSRs.
    #[error("the list of MSRs is too long")]
    Msrs(#[source] vmm_sys_util::fam::Error),
    /// KVM took only the first few MSRs.
    #[error("KVM does not know MSR {0:#x}")]
    UnknownMsr(u32),
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: bit 1 is always set.
const RFLAGS: u64 = 2;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// The boot GDT: null, 64-bit code, data, TSS, each 8 bytes.
const GDT_CODE64: u64 = 0x00af_9b00_0000_ffff;
const GDT_DATA: u64 = 0x00cf_9300_0000_ffff;
const GDT_TSS: u64 = 0x008f_8b00_0000_ffff;

/// Brings the vCPU into the state that `entry` asks for. Every vCPU gets it; those after the first wait for INIT and SIPI anyway.
///
/// # Errors
/// When KVM does not take it.
pub fn set_up(vcpu: &VcpuFd, entry: Entry) -> Result<(), Error> {
    set_msrs(vcpu)?;
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(|e| Error::Kvm("FPU", e))?;
    let mut sregs = vcpu.get_sregs().map_err(|e| Error::Kvm("segments", e))?;
    let mut regs = kvm_regs {
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry {
        Entry::Pvh(start) => {
            protected_mode(&mut sregs);
            regs.rip = start.raw_value();
            regs.rbx = layout::PVH_START_INFO.raw_value();
        }
        Entry::Linux64(start) => {
            long_mode(&mut sregs);
            regs.rip = start.raw_value();
            regs.rsp = layout::BOOT_STACK;
            regs.rbp = layout::BOOT_STACK;
            regs.rsi = layout::ZERO_PAGE.raw_value();
        }
    }
    vcpu.set_sregs(&sregs)
        .map_err(|e| Error::Kvm("segments", e))?;
    vcpu.set_regs(&regs).map_err(|e| Error::Kvm("registers", e))
}

/// Writes what [`Entry::Linux64`] needs in guest memory: the GDT, and page tables that map the first 4 GiB to themselves.
///
/// # Errors
/// When the guest's RAM is too small for them.
pub fn write_long_mode_tables(memory: &GuestMemory) -> Result<(), Error> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    for (index, entry) in (0u64..).zip([0, GDT_CODE64, GDT_DATA, GDT_TSS]) {
        memory.write_obj(entry, layout::GDT.unchecked_add(index * 8))?;
    }
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4.unchecked_add(0x1000);
    memory.write_obj(pdpt.raw_value() | PRESENT_WRITABLE, pml4)?;
    for gib in 0u64..4 {
        let directory = pdpt.unchecked_add(0x1000 * (gib + 1));
        memory.write_obj(
            directory.raw_value() | PRESENT_WRITABLE,
            pdpt.unchecked_add(gib * 8),
        )?;
        for page in 0u64..512 {
            let entry = (gib << 30) | (page << 21) | LARGE | PRESENT_WRITABLE;
            memory.write_obj(entry, directory.unchecked_add(page * 8))?;
        }
    }
    Ok(())
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let wanted = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&wanted).map_err(Error::Msrs)?;
    let taken = vcpu.set_msrs(&msrs).map_err(|e| Error::Kvm("MSRs", e))?;
    match wanted.get(taken) {
        None => Ok(()),
        Some(refused) => Err(Error::UnknownMsr(refused.index)),
    }
}

/// Flat 32-bit segments, no paging.
fn protected_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        type_: 3,
        selector: 0x10,
        ..flat
    };
    sregs.cs = kvm_segment {
        type_: 0xb,
        selector: 0x8,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_segment();
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// 64-bit code, the boot GDT, the boot page tables.
fn long_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        type_: 3,
        selector: 0x10,
        db: 1,
        ..flat
    };
    sregs.cs = kvm_segment {
        type_: 0xb,
        selector: 0x8,
        l: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_segment();
    sregs.gdt.base = layout::GDT.raw_value();
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PAGE_TABLES.raw_value();
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
}

fn task_segment() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        type_: 0xb,
        selector: 0x18,
        present: 1,
        ..Default::default()
    }
}
