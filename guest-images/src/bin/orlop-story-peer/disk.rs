//! A disk, past the page cache: what is read comes from the device, and what is written is there when that is over.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use orlop_guest_images::noise::Noise;

use super::verbs::numbers;

/// By so many bytes at a time.
const CHUNK: usize = 256 << 10;
/// What O_DIRECT wants memory to be aligned to.
const ALIGNMENT: usize = 4096;

/// `PATH OLD NEW LEN`: the disk's first bytes are of the one seed, or of none if that is 0, and then of the other; LEN is a multiple of 4096.
pub fn check(line: &str) -> io::Result<()> {
    let (path, rest) = line
        .split_once(' ')
        .ok_or_else(|| io::Error::other("no path"))?;
    let [old, new, len] = numbers(rest)?;
    let mut disk = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(|error| io::Error::other(format!("cannot open {path}: {error}")))?;
    if old != 0 {
        compare(&mut disk, old, len, path)?;
        disk.rewind()?;
    }
    in_chunks(len, |at, part| {
        Noise::new(new).fill(at, part);
        disk.write_all(part)
    })?;
    disk.sync_all()?;
    disk.rewind()?;
    compare(&mut disk, new, len, path)
}

fn compare(disk: &mut File, seed: u64, len: u64, path: &str) -> io::Result<()> {
    in_chunks(len, |at, part| {
        disk.read_exact(part)?;
        match Noise::new(seed).first_difference(at, part) {
            None => Ok(()),
            Some(place) => Err(io::Error::other(format!(
                "byte {place} of {path} is not of seed {seed}"
            ))),
        }
    })
}

fn in_chunks(len: u64, mut each: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> io::Result<()> {
    let mut memory = vec![0; CHUNK + ALIGNMENT];
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let aligned = memory.get_mut(skip..skip + CHUNK).unwrap_or_default();
    let mut at = 0;
    while at < len {
        let count = usize::try_from(len - at).map_or(CHUNK, |left| left.min(CHUNK));
        let part = aligned.get_mut(..count).unwrap_or_default();
        each(at, part)?;
        at += count as u64;
    }
    Ok(())
}
