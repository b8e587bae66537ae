//! Writes cpio archives in the "newc" format, the one that Linux unpacks as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same entries always give the same bytes: owner root, times zero, inode numbers in the order of writing.

use std::io::{self, Write};

/// An archive being written to `W`. It is complete only after [`Writer::finish`].
pub struct Writer<W> {
    out: W,
    inode: u32,
}

/// File type bits of an entry's mode (`S_IFMT`).
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory. Its parents must have been added before.
    ///
    /// # Errors
    /// When writing fails.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// When writing fails, or the file is larger than the format allows (4 GiB).
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// Adds a character device with the given major and minor numbers.
    ///
    /// # Errors
    /// When writing fails.
    pub fn character_device(&mut self, path: &str, mode: u32, dev: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | mode, dev, &[])
    }

    /// Ends the archive and hands the output back.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, (0, 0), 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, dev: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{path} is too large for a cpio archive")))?;
        self.inode += 1;
        self.header(path, mode, dev, size)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn header(&mut self, path: &str, mode: u32, dev: (u32, u32), size: u32) -> io::Result<()> {
        let name_size = path.len() + 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, dev (two), rdev (two), namesize, check
        write!(
            self.out,
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.inode, 0, 0, 0, 0, 0, dev.0, dev.1, 0
        )?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(HEADER_SIZE + name_size)
    }

    /// Fills up to a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let missing = written.next_multiple_of(4) - written;
        self.out
            .write_all([0; 3].get(..missing).unwrap_or_default())
    }
}

const HEADER_SIZE: usize = 110;

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut cpio = Writer::new(Vec::new());
        cpio.directory("dev", 0o755).unwrap();
        cpio.character_device("dev/console", 0o600, (5, 1)).unwrap();
        cpio.file("init", 0o755, b"hello").unwrap();
        cpio.file("empty", 0o644, b"").unwrap();
        cpio.finish().unwrap()
    }

    #[test]
    fn is_aligned_and_deterministic() {
        let bytes = archive();
        assert_eq!(bytes, archive());
        assert_eq!(bytes.len() % 4, 0);
        let mut at = 0;
        let mut names = Vec::new();
        loop {
            let hex = |field: usize| {
                let start = at + 6 + field * 8;
                usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16)
                    .unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_size) = (hex(6), hex(11));
            let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_size - 1]).unwrap();
            names.push(name.to_owned());
            at = (at + 110 + name_size).next_multiple_of(4);
            if name == "init" {
                assert_eq!(&bytes[at..at + size], b"hello");
            }
            at = (at + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                break;
            }
        }
        assert_eq!(names, ["dev", "dev/console", "init", "empty", "TRAILER!!!"]);
        assert_eq!(at, bytes.len());
    }

    /// What the archive is for: a program that did not come from here reads it.
    #[test]
    fn cpio_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let child = std::process::Command::new("cpio")
            .args(["-it", "--quiet"])
            .current_dir(dir.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                let _ = writeln!(io::stderr(), "skipped: cpio cannot be run: {error}");
                return;
            }
        };
        child.stdin.take().unwrap().write_all(&archive()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"dev\ndev/console\ninit\nempty\n");
    }
}
