//! The first instructions, and the end.
//!
//! The VMM enters an ELF file by Linux' 64-bit boot protocol: long mode, the first 4 GiB mapped to themselves, RSI at the zero page. All
//! that is reached here lies below 4 GiB, the BARs too, so those page tables are kept. There is no IDT: an exception is a triple
//! fault, which the VMM tells by its exit status.

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::panic::PanicInfo;

use crate::{ports, run};

const STACK_SIZE: usize = 64 << 10;

/// CR0.EM: no floating point unit.
const CR0_EM: u64 = 1 << 2;
/// CR0.MP.
const CR0_MP: u64 = 1 << 1;
/// CR4.OSFXSR and CR4.OSXMMEXCPT: SSE, which the compiler uses.
const CR4_SSE: u64 = 3 << 9;

/// The stack. Rust never looks at it as a value.
#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: nothing but the processor's stack pointer refers to it, and there is one processor.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

/// Where the VMM enters.
///
/// # Safety
/// To be entered once, by the boot protocol.
// SAFETY (of the two attributes): the linker script knows the name and the section, and nothing else has them.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        "cld",
        "mov rax, cr0",
        "and rax, {not_em}",
        "or rax, {mp}",
        "mov cr0, rax",
        "mov rax, cr4",
        "or rax, {sse}",
        "mov cr4, rax",
        "lea rsp, [rip + {stack} + {size}]",
        "xor ebp, ebp",
        "mov rdi, rsi",
        "call {enter}",
        "ud2",
        not_em = const !CR0_EM as i32,
        mp = const CR0_MP,
        sse = const CR4_SSE,
        stack = sym STACK,
        size = const STACK_SIZE,
        enter = sym enter,
    )
}

extern "C" fn enter(zero_page: u64) -> ! {
    match run(zero_page) {
        Ok(()) => ports::power_off(),
        Err(complaint) => {
            say!("FAILED to set the devices up or to ask the host: {complaint}");
            ports::reset()
        }
    }
}

#[panic_handler]
fn panicked(info: &PanicInfo) -> ! {
    say!("FAILED by the guest's own fault: {info}");
    ports::reset()
}
