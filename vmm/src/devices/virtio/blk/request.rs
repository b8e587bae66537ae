//! What a driver asks of a disk (virtio 1.2, 5.2.6), checked before anything is done.

use super::image::{Image, SECTOR};
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::{Chain, Error};

/// The length of a request's header: type, a reserved field, sector.
pub const HEADER_LEN: usize = 16;

/// VIRTIO_BLK_T_*
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

/// How a request ended, as its last byte says to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// It could not be done: by the host's fault, or beyond the disk's end, or on a read-only disk.
    IoError = 1,
    /// There is no such request.
    Unsupported = 2,
}

/// A request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes at the disk's byte `offset` into the beginning of the writable bytes.
    Read {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: usize,
    },
    /// Write `len` bytes, which follow the header, at the disk's byte `offset`.
    Write {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: usize,
    },
    /// Make durable what was written.
    Flush,
    /// Say the disk's serial number, into up to `len` bytes.
    Id {
        /// In bytes.
        len: usize,
    },
}

impl Request {
    /// What `chain` asks of `image`; the header is read once. `Err` is the answer to a request that cannot be done.
    ///
    /// # Errors
    /// When the chain is no request at all: it has no header, or no room for a status.
    pub fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        image: &Image,
    ) -> Result<Result<Self, Status>, Error> {
        let mut kind = [0; 4];
        let mut sector = [0; 8];
        chain.read_at(memory, 0, &mut kind)?;
        chain.read_at(memory, 8, &mut sector)?;
        let room = chain
            .writable_len()
            .checked_sub(1)
            .ok_or(Error::Short { need: 1, have: 0 })?;
        let extent = |len: usize| extent(u64::from_le_bytes(sector), len, image.sectors);
        Ok(match u32::from_le_bytes(kind) {
            T_IN => extent(room).map(|offset| Request::Read { offset, len: room }),
            T_OUT if image.readonly => Err(Status::IoError),
            T_OUT => {
                // The header was read, so it is there.
                let len = chain.readable_len().saturating_sub(HEADER_LEN);
                extent(len).map(|offset| Request::Write { offset, len })
            }
            T_FLUSH => Ok(Request::Flush),
            T_GET_ID => Ok(Request::Id { len: room }),
            _ => Err(Status::Unsupported),
        })
    }
}

/// The byte offset of `len` bytes from `sector` on, if they are whole sectors within the disk.
fn extent(sector: u64, len: usize, sectors: u64) -> Result<u64, Status> {
    let len = len as u64;
    let inside = sector
        .checked_add(len / SECTOR)
        .is_some_and(|end| end <= sectors);
    if !inside || !len.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    sector.checked_mul(SECTOR).ok_or(Status::IoError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_lies_within_the_disk() {
        assert_eq!(extent(0, 512, 8), Ok(0));
        assert_eq!(extent(7, 512, 8), Ok(7 * 512));
        assert_eq!(extent(8, 0, 8), Ok(8 * 512), "nothing, at the end");
        for (sector, len) in [
            (0, 511),
            (0, 513),
            (8, 512),
            (7, 1024),
            (9, 0),
            (u64::MAX, 512),
            (u64::MAX, 0),
            // These times 512 are 0 and 512 in 64 bits.
            (1 << 55, 512),
            ((1 << 55) + 1, 512),
        ] {
            assert_eq!(
                extent(sector, len, 8),
                Err(Status::IoError),
                "{sector} {len}"
            );
        }
        // A disk as large as can be.
        let all = u64::MAX / 512;
        assert_eq!(extent(all, 0, all), Ok(all * 512));
    }
}
