//! Port I/O, and what is only reached by it: the way out of the VM.

use core::arch::asm;

use crate::mmio::Width;

/// The sleep control register, where the VM's DSDT says (ACPI 6.5, 4.8.3.7), and what enters S5.
const SLEEP_CONTROL: u16 = 0x600;
const SLEEP_OFF: u8 = 1 << 5 | 5 << 2;
/// The reset register (ACPI 6.5, 4.8.3.6), and what resets.
const RESET: u16 = 0x602;
const RESET_VALUE: u8 = 1;

/// Writes a byte to a port.
pub fn write(port: u16, value: u8) {
    // SAFETY: no port of this VM touches the guest's memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Writes two bytes to a port.
pub fn write_two(port: u16, value: u16) {
    // SAFETY: as in `write`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags));
    }
}

/// Writes four bytes to a port.
pub fn write_four(port: u16, value: u32) {
    // SAFETY: as in `write`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags));
    }
}

/// Reads from a port as much as `width` says, four bytes at most.
pub fn read(port: u16, width: Width) -> u32 {
    let value: u32;
    // SAFETY: as in `write`.
    unsafe {
        match width {
            Width::One => asm!("in al, dx", "movzx eax, al", in("dx") port, out("eax") value,
                               options(nomem, nostack, preserves_flags)),
            Width::Two => asm!("in ax, dx", "movzx eax, ax", in("dx") port, out("eax") value,
                               options(nomem, nostack, preserves_flags)),
            _ => {
                asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
            }
        }
    }
    value
}

/// Reads from a port by each width that there is, whatever comes of it.
pub fn read_by_any_width(port: u16) {
    for width in [Width::One, Width::Two, Width::Four] {
        read(port, width);
    }
}

/// Powers the VM off.
pub fn power_off() -> ! {
    write(SLEEP_CONTROL, SLEEP_OFF);
    stop()
}

/// Resets the VM.
pub fn reset() -> ! {
    write(RESET, RESET_VALUE);
    stop()
}

fn stop() -> ! {
    loop {
        // SAFETY: interrupts are off, so this is the end.
        unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) };
    }
}
