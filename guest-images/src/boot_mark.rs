//! The sign by which a guest tells a benchmark that its user space is reached: the instruction CPUID with a leaf that nobody else asks for.
//!
//! It leaves the guest on every x86 processor, needs no privilege and no device, and the host's kernel can trace it, whatever the VMM.

use std::arch::x86_64::__cpuid;
use std::hint::black_box;

/// The leaf, in a range that neither processors nor hypervisors define.
pub const LEAF: u32 = 0x4f72_6c70;

/// Gives the sign.
pub fn give() {
    black_box(__cpuid(LEAF));
}
