//! Accesses to devices' registers, each by one instruction of exactly the wanted size: the size is part of what is tested.

use core::arch::asm;

/// The hole in RAM below 4 GiB, where all registers are.
const HOLE: core::ops::Range<u64> = 0xc000_0000..0x1_0000_0000;

/// The size of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// A byte.
    One,
    /// Two bytes.
    Two,
    /// Four bytes.
    Four,
    /// Eight bytes.
    Eight,
}

impl Width {
    /// All of them.
    pub const ALL: [Width; 4] = [Width::One, Width::Two, Width::Four, Width::Eight];

    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }
}

/// Reads.
pub fn read(address: u64, width: Width) -> u64 {
    assert!(HOLE.contains(&address), "no register is at {address:#x}");
    let value: u64;
    // SAFETY: nothing in the hole is memory, so Rust has nothing there; and it is mapped.
    unsafe {
        match width {
            Width::One => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) address,
                               options(nostack, preserves_flags)),
            Width::Two => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) address,
                               options(nostack, preserves_flags)),
            Width::Four => asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) address,
                                options(nostack, preserves_flags)),
            Width::Eight => asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) address,
                                 options(nostack, preserves_flags)),
        }
    }
    value
}

/// Writes as much of `value` as the access is wide.
pub fn write(address: u64, width: Width, value: u64) {
    assert!(HOLE.contains(&address), "no register is at {address:#x}");
    // SAFETY: as in `read`; devices write to memory that is not Rust's either, see `ram`.
    unsafe {
        match width {
            Width::One => asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value as u8,
                               options(nostack, preserves_flags)),
            Width::Two => asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) value,
                               options(nostack, preserves_flags)),
            Width::Four => asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value,
                                options(nostack, preserves_flags)),
            Width::Eight => asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value,
                                 options(nostack, preserves_flags)),
        }
    }
}
