//! Signatures of kernel modules.
//!
//! A distribution signs its modules, and the kernel checks each that it loads: a good two thirds of what loading one costs, and a
//! tenth of a guest's start. In a guest the check proves nothing, for kernel, modules and initramfs come from the same hand; so
//! the signatures are left out, and the kernel notes that (its taint flag `E`).
//!
//! The signature is behind the module: PKCS #7 data, a `struct module_signature` whose last four bytes are the size of that data
//! (big-endian), and a magic string (include/linux/module_signature.h).

const MAGIC: &[u8] = b"~Module signature appended~\n";

/// The size of `struct module_signature`.
const HEADER: usize = 12;

/// The module without its signature, if it has one that can be told.
pub fn strip(module: &[u8]) -> &[u8] {
    signed_part(module).unwrap_or(module)
}

fn signed_part(module: &[u8]) -> Option<&[u8]> {
    let rest = module.strip_suffix(MAGIC)?;
    let (rest, header) = rest.split_last_chunk::<HEADER>()?;
    let size = u32::from_be_bytes(*header.last_chunk::<4>()?);
    rest.get(..rest.len().checked_sub(usize::try_from(size).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(size: u32) -> Vec<u8> {
        let mut module = b"the module".to_vec();
        module.extend(b"signature");
        module.extend([0; 8]);
        module.extend(size.to_be_bytes());
        module.extend(MAGIC);
        module
    }

    #[test]
    fn takes_the_signature_away() {
        assert_eq!(strip(&signed(9)), b"the module");
        assert_eq!(strip(b"no signature"), b"no signature");
    }

    #[test]
    fn leaves_what_is_no_signature() {
        for size in [20, u32::MAX] {
            assert_eq!(strip(&signed(size)), signed(size));
        }
        assert_eq!(strip(MAGIC), MAGIC);
        assert_eq!(strip(b""), b"");
    }
}
