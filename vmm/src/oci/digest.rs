//! Content named by its digest (OCI image specification, "Digests").

use std::io::{self, Read};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::Digest as _;

/// Computes a digest of what is read through it.
pub struct Hashing<R> {
    inner: R,
    hash: Hash,
    length: u64,
}

#[derive(Clone)]
enum Hash {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hash {
    /// Of the kind that `expected` is, if it is one that we know.
    fn like(expected: &Digest) -> io::Result<Self> {
        match expected.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Self::Sha256(sha2::Sha256::new())),
            DigestAlgorithm::Sha512 => Ok(Self::Sha512(sha2::Sha512::new())),
            other => Err(wrong(format!(
                "digests of the kind {other} are not known, only sha256 and sha512"
            ))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn hex(self) -> String {
        let bytes = match self {
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl<R: Read> Hashing<R> {
    /// Reads from `inner` what should have the digest `expected`.
    ///
    /// # Errors
    /// When the digest is of a kind that we do not know.
    pub fn new(inner: R, expected: &Digest) -> io::Result<Self> {
        Ok(Self {
            inner,
            hash: Hash::like(expected)?,
            length: 0,
        })
    }

    /// Reads to the end, and compares.
    ///
    /// # Errors
    /// When reading fails, or the content has another digest.
    pub fn verify(&mut self, expected: &Digest) -> io::Result<()> {
        io::copy(self, &mut io::sink())?;
        let found = self.hash.clone().hex();
        if found == expected.digest() {
            return Ok(());
        }
        Err(wrong(format!(
            "its content has the digest {}:{found} and should have {expected} ({} bytes were read)",
            expected.algorithm(),
            self.length
        )))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        self.length += count as u64;
        Ok(count)
    }
}

/// The SHA-256 of `bytes`, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Hash::Sha256(sha2::Sha256::new_with_prefix(bytes)).hex()
}

/// Content that is not what it should be.
pub fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn content_is_what_its_digest_says() {
        let digest: Digest = ABC.parse().unwrap();
        let verify = |content: &[u8]| Hashing::new(content, &digest).unwrap().verify(&digest);
        verify(b"abc").unwrap();
        let error = verify(b"abd").unwrap_err().to_string();
        assert!(error.contains(ABC) && error.contains("3 bytes"), "{error}");
    }

    #[test]
    fn another_kind_of_digest_is_refused() {
        let digest: Digest = format!("sha384:{}", "0".repeat(96)).parse().unwrap();
        assert!(Hashing::new(&b""[..], &digest).is_err());
    }
}
