//! A guest without a kernel: an ELF file of a few bytes whose first instructions give the benchmarks' sign. What a VMM needs to start it is the
//! VMM's own doing alone.

use orlop_guest_images::boot_mark;

/// Where it lies in the guest's memory, as kernels do.
const BASE: u64 = 16 << 20;
/// The sizes of an ELF file's header and of an entry of its program header table (System V ABI, chapters 4 and 5).
const HEADER: u16 = 64;
const SEGMENT: u16 = 56;
const SEGMENTS: u16 = 2;
/// Where the note is in the file, and how long it is.
const NOTE: u64 = HEADER as u64 + SEGMENT as u64 * SEGMENTS as u64;
const NOTE_LENGTH: u64 = 24;
/// Where the code is in it.
const CODE: u64 = NOTE + NOTE_LENGTH;

/// The file, with the note that tells the entry point of the PVH boot protocol (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`).
pub fn image() -> Vec<u8> {
    let code = code();
    let length = CODE + code.len() as u64;
    let mut file = Vec::new();
    // 64 bits, little-endian, version 1; an executable file for x86-64.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half_words(&mut file, &[2, 62]);
    words(&mut file, &[1]);
    double_words(&mut file, &[BASE + CODE, HEADER.into(), 0]);
    words(&mut file, &[0]);
    half_words(&mut file, &[HEADER, SEGMENT, SEGMENTS, 0, 0, 0]);
    // All of the file is loaded, to be read, written and executed; and where in it the note is.
    words(&mut file, &[1, 7]);
    double_words(&mut file, &[0, BASE, BASE, length, length, 0x1000]);
    words(&mut file, &[4, 4]);
    double_words(
        &mut file,
        &[NOTE, BASE + NOTE, BASE + NOTE, NOTE_LENGTH, NOTE_LENGTH, 4],
    );
    words(&mut file, &[4, 8, 18]);
    file.extend(b"Xen\0");
    double_words(&mut file, &[BASE + CODE]);
    file.extend(code);
    file
}

/// The same in 32 and in 64 bits: `mov eax, LEAF; cpuid`, and `hlt; jmp` for ever.
fn code() -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(boot_mark::LEAF.to_le_bytes());
    code.extend([0x0f, 0xa2, 0xf4, 0xeb, 0xfd]);
    code
}

fn half_words(file: &mut Vec<u8>, values: &[u16]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn words(file: &mut Vec<u8>, values: &[u32]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn double_words(file: &mut Vec<u8>, values: &[u64]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_lies_where_the_headers_say() {
        let file = image();
        assert_eq!(
            file.get(NOTE as usize + 12..NOTE as usize + 16),
            Some(&b"Xen\0"[..])
        );
        assert_eq!(file.get(CODE as usize), Some(&0xb8));
        assert_eq!(file.len() as u64, CODE + code().len() as u64);
    }
}
