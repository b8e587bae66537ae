//! What must be known of a kernel's ELF file: that it is one for x86-64, and that it can be entered by PVH.
//!
//! PVH is announced by an ELF note of name `Xen` and type 18 (XEN_ELFNOTE_PHYS32_ENTRY), found through the program headers of
//! type PT_NOTE.

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The bytes are no ELF file.
    #[error("it is not an ELF file")]
    NotElf,
    /// Not 64-bit, little-endian, x86-64.
    #[error("it is for another architecture (ELF machine {0}), x86-64 is needed")]
    Architecture(u16),
    /// Headers or segments lie outside of the file.
    #[error("its ELF headers point outside of it")]
    Truncated,
    /// Built without CONFIG_PVH.
    #[error("it has no PVH entry point (CONFIG_PVH)")]
    NoPvh,
}

const EM_X86_64: u16 = 62;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Checks that `file` is an x86-64 kernel with a PVH entry point.
pub(crate) fn check_pvh_kernel(file: &[u8]) -> Result<(), Error> {
    if file.get(..4) != Some(b"\x7fELF") {
        return Err(Error::NotElf);
    }
    let machine = u16::from_le_bytes(bytes(file, 18)?);
    // Class 2 is 64 bits, data 1 is little-endian.
    if machine != EM_X86_64 || file.get(4..6) != Some(&[2, 1]) {
        return Err(Error::Architecture(machine));
    }
    let headers = u64::from_le_bytes(bytes(file, 32)?);
    let size = u64::from(u16::from_le_bytes(bytes(file, 54)?));
    let count = u64::from(u16::from_le_bytes(bytes(file, 56)?));
    for index in 0..count {
        let at = headers.checked_add(index * size).ok_or(Error::Truncated)?;
        let at = usize::try_from(at).map_err(|_| Error::Truncated)?;
        let header = file
            .get(at..)
            .and_then(|rest| rest.first_chunk::<56>())
            .ok_or(Error::Truncated)?;
        if u32::from_le_bytes(bytes(header, 0)?) != PT_NOTE {
            continue;
        }
        let offset = u64::from_le_bytes(bytes(header, 8)?);
        let length = u64::from_le_bytes(bytes(header, 32)?);
        let end = offset.checked_add(length).ok_or(Error::Truncated)?;
        let notes = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(offset, end)| file.get(offset..end))
            .ok_or(Error::Truncated)?;
        if has_pvh_note(notes) {
            return Ok(());
        }
    }
    Err(Error::NoPvh)
}

/// Looks through a note segment; what is malformed in it ends the search.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    while let Some((header, rest)) = notes.split_first_chunk::<12>() {
        let word = |at| bytes(header, at).map_or(0, u32::from_le_bytes) as usize;
        let (name_size, desc_size, kind) = (word(0), word(4), word(8));
        let Some(name) = rest.get(..name_size) else {
            return false;
        };
        let desc_at = name_size.next_multiple_of(4);
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY as usize {
            return rest.get(desc_at..desc_at + desc_size).is_some() && desc_size >= 4;
        }
        match rest.get(desc_at + desc_size.next_multiple_of(4)..) {
            Some(next) => notes = next,
            None => return false,
        }
    }
    false
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], Error> {
    file.get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or(Error::Truncated)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest file that passes.
    pub(crate) fn kernel_with_pvh_note() -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&PT_NOTE.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        // Another note first, whose name and description need padding.
        let mut notes = Vec::new();
        for (name, kind, desc) in [
            (&b"Linux\0"[..], 257, &b"abcde"[..]),
            (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY, &[0, 0, 0, 1]),
        ] {
            notes.extend((name.len() as u32).to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            for part in [name, desc] {
                notes.extend(part);
                notes.resize(notes.len().next_multiple_of(4), 0);
            }
        }
        file[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        file.extend(notes);
        file
    }

    #[test]
    fn accepts_a_pvh_kernel() {
        assert_eq!(check_pvh_kernel(&kernel_with_pvh_note()), Ok(()));
    }

    #[test]
    fn refuses_others() {
        assert_eq!(check_pvh_kernel(b""), Err(Error::NotElf));
        let mut arm = kernel_with_pvh_note();
        arm[18] = 183;
        assert_eq!(check_pvh_kernel(&arm), Err(Error::Architecture(183)));
        let mut no_note = kernel_with_pvh_note();
        let at = no_note.len() - 12;
        no_note[at] = 17;
        assert_eq!(check_pvh_kernel(&no_note), Err(Error::NoPvh));
    }

    #[test]
    fn hostile_headers_are_errors() {
        let good = kernel_with_pvh_note();
        for length in 0..good.len() {
            assert!(check_pvh_kernel(&good[..length]).is_err(), "{length}");
        }
        // Each header field at its largest: never a panic.
        for at in (0..good.len()).step_by(2) {
            for width in [2, 4, 8] {
                let mut bad = good.clone();
                let end = (at + width).min(bad.len());
                bad[at..end].fill(0xff);
                let _ = check_pvh_kernel(&bad);
            }
        }
    }
}
