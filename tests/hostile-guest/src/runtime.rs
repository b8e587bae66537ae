//! What the compiler takes for granted: the four memory functions that it calls, and the two names that its precompiled `core` refers to
//! although nothing here unwinds.

use core::arch::asm;

/// Copies.
///
/// # Safety
/// As C's.
// SAFETY: the name is C's, and so is what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller gives `count` bytes at each; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies what may overlap.
///
/// # Safety
/// As C's.
// SAFETY: the name is C's, and so is what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: as above; reading forwards, no byte is written before it was read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: as above, from the last byte to the first; the flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
             inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// Fills.
///
/// # Safety
/// As C's.
// SAFETY: the name is C's, and so is what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller gives `count` bytes; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// Compares.
///
/// # Safety
/// As C's.
// SAFETY: the name is C's, and so is what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: the caller gives `count` bytes at each. Volatile, or the compiler would make a call of memcmp of this.
        let (one, other) = unsafe {
            (
                one.wrapping_add(at).read_volatile(),
                other.wrapping_add(at).read_volatile(),
            )
        };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

/// Compares for equality.
///
/// # Safety
/// As C's.
// SAFETY: the name is the compiler's, and so is what it does.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(one, other, count) }
}

/// Never called: a panic ends the guest.
// SAFETY: the name is the compiler's, and nothing else has it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Never called: a panic ends the guest.
// SAFETY: the name is the compiler's, and nothing else has it.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() {}
