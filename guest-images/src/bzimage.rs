//! Takes the kernel's ELF file out of a bzImage.
//!
//! A bzImage is a real-mode setup part, followed by a small protected-mode program that carries the compressed kernel as its
//! payload. Since version 2.08 of the boot protocol the setup header says where the payload is (`payload_offset`,
//! `payload_length`; Documentation/arch/x86/boot.rst). The payload is a compressed file followed by the four bytes of its
//! uncompressed size; uncompressed it is the kernel's ELF file, with relocation entries behind it.
//!
//! The file may be anything: nothing is read outside of it, and no more than [`MAX_KERNEL`] bytes are ever unpacked.

use crate::elf;

/// The largest uncompressed kernel that is accepted, in bytes. Debian's cloud kernel takes 46 MiB.
pub const MAX_KERNEL: usize = 512 << 20;

/// The uncompressed size of a block of the LZ4 legacy format, except for the last.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// The compression formats that Linux knows for a bzImage, and what their files begin with (lib/decompress.c).
const FORMATS: [(&[u8], Compression); 7] = [
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (b"BZh", Compression::Bzip2),
    (&[0x5d, 0, 0], Compression::Lzma),
    (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Lz4,
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Lzma,
    Lzo,
}

/// Why a file yields no kernel. Each message is complete but for the file's name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a bzImage nor anything that is known.
    #[error("is not an x86 bzImage: {0}")]
    Foreign(&'static str),
    /// The file ends before what its header promises.
    #[error("is truncated: {what} needs {needed} bytes, the file has {have}; fetch it again")]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Where it ends, in bytes from the file's start.
        needed: u64,
        /// The file's size in bytes.
        have: u64,
    },
    /// A boot protocol from before the payload could be found.
    #[error("speaks boot protocol {}.{:02}, 2.08 or later is needed", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// A compression that is not supported here.
    #[error(
        "is compressed with {0}; a kernel compressed with LZ4 or gzip is needed (Debian's cloud kernels are)"
    )]
    Compression(&'static str),
    /// The payload does not unpack.
    #[error("has a damaged payload: {0}")]
    Payload(String),
    /// What was unpacked is not an x86-64 kernel with a PVH entry point.
    #[error("holds a kernel that cannot be used: {0}")]
    Kernel(#[from] elf::Error),
}

/// Unpacks the kernel's ELF file from the bzImage `image`.
///
/// # Errors
/// When `image` is no bzImage, is cut short or damaged, or holds a kernel without the PVH entry point by which Orlop boots it.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, Error> {
    let payload = payload(image)?;
    let compression = FORMATS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .map(|(_, compression)| *compression)
        .ok_or(Error::Foreign("its payload is of no known compression"))?;
    // The last four bytes are the uncompressed size, whatever the format: gzip ends with it, and the kernel's build appends it
    // to the others.
    let (body, size) = payload
        .split_last_chunk::<4>()
        .ok_or(Error::Payload("it is empty".into()))?;
    let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
    if size > MAX_KERNEL {
        return Err(Error::Payload(format!(
            "it claims to unpack to {size} bytes, more than {MAX_KERNEL}"
        )));
    }
    let kernel = match compression {
        Compression::Lz4 => lz4_legacy(body, size)?,
        Compression::Gzip => gzip(payload, size)?,
        Compression::Xz => return Err(Error::Compression("xz")),
        Compression::Zstd => return Err(Error::Compression("zstd")),
        Compression::Bzip2 => return Err(Error::Compression("bzip2")),
        Compression::Lzma => return Err(Error::Compression("lzma")),
        Compression::Lzo => return Err(Error::Compression("lzo")),
    };
    if kernel.len() != size {
        return Err(Error::Payload(format!(
            "it unpacks to {} bytes instead of {size}",
            kernel.len()
        )));
    }
    elf::check_pvh_kernel(&kernel)?;
    Ok(kernel)
}

/// The compressed kernel within the image.
fn payload(image: &[u8]) -> Result<&[u8], Error> {
    if image.is_empty() {
        return Err(Error::Foreign("it is empty"));
    }
    if image.starts_with(b"\x7fELF") {
        return Err(Error::Foreign(
            "it is an ELF file, which can be used as it is",
        ));
    }
    // arm64 (Documentation/arch/arm64/booting.rst) and RISC-V images have their magic numbers at these places.
    if image.get(0x38..0x3c) == Some(b"ARM\x64") {
        return Err(Error::Foreign("it is an arm64 kernel"));
    }
    if image.get(0x38..0x3c) == Some(b"RSC\x05") {
        return Err(Error::Foreign("it is a RISC-V kernel"));
    }
    match (image.get(0x1fe..0x200), image.get(0x202..0x206)) {
        (Some([0x55, 0xaa]), Some(b"HdrS")) => {}
        (Some([0x55, 0xaa]), None) => return Err(truncated("the setup header", 0x206, image)),
        _ => return Err(Error::Foreign("it has no setup header")),
    }
    let version = u16::from_le_bytes(field(image, 0x206)?);
    if version < 0x0208 {
        return Err(Error::Protocol(version));
    }
    // Zero stands for four, for the sake of very old boot loaders.
    let setup_sectors = match field::<1>(image, 0x1f1)? {
        [0] => 4,
        [n] => u64::from(n),
    };
    let offset = u64::from(u32::from_le_bytes(field(image, 0x248)?));
    let length = u64::from(u32::from_le_bytes(field(image, 0x24c)?));
    // Sums of three u32-sized numbers: they cannot overflow.
    let start = (setup_sectors + 1) * 512 + offset;
    let end = start + length;
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range
        .and_then(|(start, end)| image.get(start..end))
        .ok_or_else(|| truncated("the compressed kernel", end, image))
}

fn field<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], Error> {
    image
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or_else(|| truncated("the setup header", (at + N) as u64, image))
}

fn truncated(what: &'static str, needed: u64, image: &[u8]) -> Error {
    Error::Truncated {
        what,
        needed,
        have: image.len() as u64,
    }
}

/// Unpacks the LZ4 legacy format: a magic number, then blocks, each behind its compressed size (little-endian).
fn lz4_legacy(body: &[u8], size: usize) -> Result<Vec<u8>, Error> {
    let damaged = |why: &str| Error::Payload(format!("LZ4: {why}"));
    let mut rest = body.get(4..).unwrap_or_default();
    let mut out = vec![0; size];
    let mut filled = 0;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let block = tail
            .get(..length)
            .ok_or_else(|| damaged("a block is longer than the file"))?;
        rest = tail.get(length..).unwrap_or_default();
        let room = out.get_mut(filled..).unwrap_or_default();
        let room_now = room.len().min(LZ4_LEGACY_BLOCK);
        let room = room
            .get_mut(..room_now)
            .ok_or_else(|| damaged("it unpacks to more than it claims"))?;
        let written = lz4_flex::block::decompress_into(block, room)
            .map_err(|error| damaged(&error.to_string()))?;
        filled += written;
    }
    if !rest.is_empty() {
        return Err(damaged("a block's size is cut short"));
    }
    out.truncate(filled);
    Ok(out)
}

fn gzip(payload: &[u8], size: usize) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    let mut out = Vec::with_capacity(size);
    flate2::read::GzDecoder::new(payload)
        .take(size as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|error| Error::Payload(format!("gzip: {error}")))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::kernel_with_pvh_note;

    /// An image as the kernel's build makes it, around `payload`.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0xcc; 100]);
        image.extend(payload);
        image.extend([0; 64]);
        image
    }

    fn lz4(kernel: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in kernel.chunks(LZ4_LEGACY_BLOCK) {
            let block = lz4_flex::block::compress(chunk);
            out.extend((block.len() as u32).to_le_bytes());
            out.extend(block);
        }
        out.extend((kernel.len() as u32).to_le_bytes());
        out
    }

    fn message(image: &[u8]) -> String {
        vmlinux(image).unwrap_err().to_string()
    }

    #[test]
    fn unpacks_lz4_over_several_blocks() {
        let mut kernel = kernel_with_pvh_note();
        kernel.resize(2 * LZ4_LEGACY_BLOCK + 12345, 7);
        assert!(vmlinux(&image(&lz4(&kernel))).unwrap() == kernel);
    }

    #[test]
    fn unpacks_gzip() {
        use std::io::Write as _;
        let kernel = kernel_with_pvh_note();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&kernel).unwrap();
        assert_eq!(vmlinux(&image(&gz.finish().unwrap())).unwrap(), kernel);
    }

    #[test]
    fn says_what_a_foreign_file_is() {
        assert!(message(b"").contains("it is empty"));
        assert!(message(&[0; 4096]).contains("no setup header"));
        assert!(message(b"\x7fELF....").contains("used as it is"));
        let mut arm = vec![0; 4096];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert!(message(&arm).contains("arm64"));
        let mut old = image(&lz4(&kernel_with_pvh_note()));
        old[0x206..0x208].copy_from_slice(&0x0204u16.to_le_bytes());
        assert!(message(&old).contains("boot protocol 2.04"));
        assert!(message(&image(&[0xfd, b'7', b'z', b'X', b'Z', 0, 9, 9, 9, 9])).contains("xz"));
        assert!(message(&image(b"what is this")).contains("no known compression"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = image(&lz4(&kernel_with_pvh_note()));
        let used = whole.len() - 64;
        for length in 0..used {
            assert!(vmlinux(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(message(&whole[..used - 1]).contains("is truncated"));
    }

    #[test]
    fn hostile_payloads_are_errors() {
        let kernel = kernel_with_pvh_note();
        let good = lz4(&kernel);
        // Claims to unpack to 4 GiB, to less, and to more than it does.
        for size in [u32::MAX, kernel.len() as u32 - 1, kernel.len() as u32 + 1] {
            let mut payload = good.clone();
            let at = payload.len() - 4;
            payload[at..].copy_from_slice(&size.to_le_bytes());
            assert!(vmlinux(&image(&payload)).is_err(), "{size}");
        }
        // A block that is longer than the payload.
        let mut payload = good.clone();
        payload[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message(&image(&payload)).contains("longer than the file"));
        // Any byte of the payload damaged: an error or a kernel, never a panic.
        for at in 0..good.len() {
            let mut payload = good.clone();
            payload[at] ^= 0xff;
            let _ = vmlinux(&image(&payload));
        }
        // Offsets at the end of the world.
        let mut far = image(&good);
        far[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        far[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message(&far).contains("truncated"));
        assert!(message(&image(&[])).contains("no known compression"));
    }
}
