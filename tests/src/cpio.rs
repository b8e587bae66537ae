//! Archives of the kind that the kernel unpacks as its first root file system.

use std::io::{self, Write};

/// The mode of a directory.
pub const DIRECTORY: u32 = 0o040_755;
/// The mode of a file.
pub const FILE: u32 = 0o100_644;
/// The mode of a program.
pub const PROGRAM: u32 = 0o100_755;
/// The mode of a symbolic link; its content is its target.
pub const LINK: u32 = 0o120_777;

/// A cpio archive in the "newc" form, the one that the kernel unpacks (its `Documentation/driver-api/early-userspace`).
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file, with its type in `mode`.
    ///
    /// # Errors
    /// When it has 4 GiB or more.
    pub fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        // magic, then: inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name's size, checksum
        let (inode, links) = (self.entries, 1);
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.bytes, "070701")?;
        for field in fields {
            write!(self.bytes, "{field:08X}")?;
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Ends the archive and returns it.
    ///
    /// # Errors
    /// None in practice: the end is small.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.add("d", DIRECTORY, &[]).unwrap();
        archive.add("d/file", FILE, b"odd").unwrap();
        archive.add("d/link", LINK, b"file").unwrap();
        // busybox is what the testbed needs in any case; it has cpio.
        let mut cpio = Command::new("/bin/busybox")
            .args(["cpio", "-id"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bytes = archive.finish().unwrap();
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(fs::read(directory.path().join("d/link")).unwrap(), b"odd");
    }
}
