//! How much an image may unpack to. A layer of some kilobytes can say that it is a disk full of zeroes, or any number of files.

use std::cell::Cell;
use std::io;

use super::unpack::refused;

/// What the files of an image may hold together, in bytes: several times what the largest that are in use do.
const MAX_BYTES: u64 = 64 << 30;
/// Entries that the layers of an image may have together. We remember the names of those of one layer.
const MAX_ENTRIES: u64 = 2 << 20;

/// What is left of that.
pub struct Allowance {
    bytes: Cell<u64>,
    entries: Cell<u64>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self::of(MAX_BYTES, MAX_ENTRIES)
    }
}

impl Allowance {
    /// So many bytes of content, and so many entries.
    pub fn of(bytes: u64, entries: u64) -> Self {
        Self {
            bytes: Cell::new(bytes),
            entries: Cell::new(entries),
        }
    }

    /// Takes an entry with so many bytes of content.
    ///
    /// # Errors
    /// `InvalidInput` when there is not so much left.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let left = |of: &Cell<u64>, wanted, what: &str| {
            let left = of.get().checked_sub(wanted);
            left.ok_or_else(|| {
                refused(&format!(
                    "with it the image has more {what} than an image may have"
                ))
            })
        };
        let entries = left(&self.entries, 1, "files")?;
        let bytes = left(&self.bytes, bytes, "bytes")?;
        self.entries.set(entries);
        self.bytes.set(bytes);
        Ok(())
    }
}
