//! The RAM that devices reach: an arena that Rust has nothing in, so that whatever a device writes there, nobody is surprised.

use core::ptr;

/// The arena. The guest itself lies below.
pub const ARENA: core::ops::Range<u64> = 0x200_0000..0x600_0000;

/// The zero page's number of memory map entries, and the entries (Linux, Documentation/arch/x86/zero-page.rst).
const E820_ENTRIES: u64 = 0x1e8;
const E820_TABLE: u64 = 0x2d0;
const E820_ENTRY_SIZE: u64 = 20;
/// The type of an entry that is RAM.
const E820_RAM: u32 = 1;

/// What can be read and written as it is.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// Writes to the arena.
pub fn store<T: Word>(at: u64, value: T) {
    check::<T>(at);
    // SAFETY: the address is in the arena, which is mapped RAM that Rust has nothing in; any alignment will do.
    unsafe { ptr::with_exposed_provenance_mut::<T>(at as usize).write_volatile(value) }
}

/// Reads from the arena.
pub fn load<T: Word>(at: u64) -> T {
    check::<T>(at);
    // SAFETY: as above, and every pattern of bits is a `Word`.
    unsafe { ptr::with_exposed_provenance::<T>(at as usize).read_volatile() }
}

/// Fills a part of the arena. `len` is a multiple of 8.
pub fn fill(at: u64, len: u64, byte: u8) {
    let word = u64::from_ne_bytes([byte; 8]);
    (0..len / 8).for_each(|index| store(at + 8 * index, word));
}

/// Whether a part of the arena holds nothing but `byte`. `len` is a multiple of 8.
pub fn holds(at: u64, len: u64, byte: u8) -> bool {
    let word = u64::from_ne_bytes([byte; 8]);
    (0..len / 8).all(|index| load::<u64>(at + 8 * index) == word)
}

fn check<T>(at: u64) {
    let end = at.saturating_add(size_of::<T>() as u64);
    assert!(
        ARENA.contains(&at) && end <= ARENA.end && at.is_multiple_of(size_of::<T>() as u64),
        "{at:#x} is no place in the arena"
    );
}

/// Where RAM ends below the hole, as the boot protocol's memory map says.
pub fn end(zero_page: u64) -> u64 {
    let count = boot_data(zero_page + E820_ENTRIES, 1);
    (0..count)
        .map(|index| zero_page + E820_TABLE + index * E820_ENTRY_SIZE)
        .filter(|entry| boot_data(entry + 16, 4) == u64::from(E820_RAM))
        .map(|entry| boot_data(entry, 8) + boot_data(entry + 8, 8))
        .filter(|end| *end <= 0xc000_0000)
        .max()
        .unwrap_or(0)
}

/// A little-endian number of `len` bytes that the VMM left in the first megabyte.
fn boot_data(at: u64, len: u64) -> u64 {
    assert!(
        (0x1000..0x10_0000).contains(&at),
        "no boot data is at {at:#x}"
    );
    (0..len).fold(0, |value, index| {
        // SAFETY: the first megabyte is mapped, and Rust has nothing there.
        let byte =
            unsafe { ptr::with_exposed_provenance::<u8>((at + index) as usize).read_volatile() };
        value | u64::from(byte) << (8 * index)
    })
}
