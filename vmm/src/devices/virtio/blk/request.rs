//! What a driver asks of a disk (virtio 1.2, 5.2.6), checked before anything is done.

use super::config::{DISCARD_SECTORS_MAX, WRITE_ZEROES_SECTORS_MAX};
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
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The length of a segment of a discard or write-zeroes request: sector, number of sectors, flags.
const SEGMENT_LEN: usize = 16;
/// The one flag that a segment may have: what is zeroed may be given back to the host.
const SEGMENT_UNMAP: u32 = 1;

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
    /// Forget `len` bytes at the disk's byte `offset`: nobody will read them again.
    Discard {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Zero `len` bytes at the disk's byte `offset`.
    WriteZeroes {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
        /// Whether their space may be given back to the host.
        unmap: bool,
    },
    /// Nothing at all, as a flush of a disk that is not written to.
    Nothing,
}

/// Which of the requests that a driver must ask for by a feature bit it may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// VIRTIO_BLK_F_DISCARD
    pub discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES
    pub write_zeroes: bool,
}

impl Request {
    /// How many bytes are copied for it.
    pub fn bytes(&self) -> usize {
        match *self {
            Request::Read { len, .. } | Request::Write { len, .. } | Request::Id { len } => len,
            Request::Flush
            | Request::Discard { .. }
            | Request::WriteZeroes { .. }
            | Request::Nothing => 0,
        }
    }

    /// What `chain` asks of `image`; the header is read once. `Err` is the answer to a request that cannot be done.
    ///
    /// # Errors
    /// When the chain is no request at all: it has no header, or no room for a status.
    pub fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        image: &Image,
        allowed: Allowed,
    ) -> Result<Result<Self, Status>, Error> {
        let mut kind = [0; 4];
        let mut sector = [0; 8];
        chain.read_at(memory, 0, &mut kind)?;
        chain.read_at(memory, 8, &mut sector)?;
        let room = chain
            .writable_len()
            .checked_sub(1)
            .ok_or(Error::Short { need: 1, have: 0 })?;
        let extent = |len: usize| extent(u64::from_le_bytes(sector), len as u64, image.sectors);
        Ok(match u32::from_le_bytes(kind) {
            T_OUT | T_DISCARD | T_WRITE_ZEROES if image.readonly => Err(Status::IoError),
            T_IN => extent(room).map(|offset| Request::Read { offset, len: room }),
            T_OUT => {
                // The header was read, so it is there.
                let len = chain.readable_len().saturating_sub(HEADER_LEN);
                extent(len).map(|offset| Request::Write { offset, len })
            }
            T_FLUSH if image.readonly => Ok(Request::Nothing),
            T_FLUSH => Ok(Request::Flush),
            T_DISCARD if allowed.discard => match Segment::read(chain, memory)? {
                Some(segment) => segment.discard(image.sectors),
                None => Err(Status::IoError),
            },
            T_WRITE_ZEROES if allowed.write_zeroes => match Segment::read(chain, memory)? {
                Some(segment) => segment.write_zeroes(image.sectors),
                None => Err(Status::IoError),
            },
            T_GET_ID => Ok(Request::Id { len: room }),
            _ => Err(Status::Unsupported),
        })
    }
}

/// What a discard or write-zeroes request is about (virtio 1.2, 5.2.6). A request has one, as the configuration space says.
#[derive(Clone, Copy, Debug)]
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Segment {
    /// Reads the segment, once. `None` when the data is not exactly one.
    fn read(chain: &Chain, memory: &GuestMemory) -> Result<Option<Self>, Error> {
        if chain.readable_len() != HEADER_LEN + SEGMENT_LEN {
            return Ok(None);
        }
        let (mut sector, mut sectors, mut flags) = ([0; 8], [0; 4], [0; 4]);
        chain.read_at(memory, HEADER_LEN, &mut sector)?;
        chain.read_at(memory, HEADER_LEN + 8, &mut sectors)?;
        chain.read_at(memory, HEADER_LEN + 12, &mut flags)?;
        Ok(Some(Segment {
            sector: u64::from_le_bytes(sector),
            sectors: u32::from_le_bytes(sectors),
            flags: u32::from_le_bytes(flags),
        }))
    }

    /// Its byte offset and length, if it has no other flags than `known`, no more sectors than `max`, and lies within the disk.
    fn check(&self, known: u32, max: u32, disk: u64) -> Result<(u64, u64), Status> {
        if self.flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        let len = u64::from(self.sectors) * SECTOR;
        let offset = extent(self.sector, len, disk)?;
        if self.sectors > max {
            return Err(Status::IoError);
        }
        Ok((offset, len))
    }

    fn discard(&self, disk: u64) -> Result<Request, Status> {
        let (offset, len) = self.check(0, DISCARD_SECTORS_MAX, disk)?;
        Ok(Request::Discard { offset, len })
    }

    fn write_zeroes(&self, disk: u64) -> Result<Request, Status> {
        let (offset, len) = self.check(SEGMENT_UNMAP, WRITE_ZEROES_SECTORS_MAX, disk)?;
        let unmap = self.flags & SEGMENT_UNMAP != 0;
        Ok(Request::WriteZeroes { offset, len, unmap })
    }
}

/// The byte offset of `len` bytes from `sector` on, if they are whole sectors within the disk.
fn extent(sector: u64, len: u64, sectors: u64) -> Result<u64, Status> {
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

    #[test]
    fn a_segment_lies_within_the_disk_and_has_no_unknown_flags() {
        let segment = |sector, sectors, flags| Segment {
            sector,
            sectors,
            flags,
        };
        let disk = 1 << 40;
        let discard = |sector, sectors, flags| segment(sector, sectors, flags).discard(disk);
        let zero = |sector, sectors, flags| segment(sector, sectors, flags).write_zeroes(disk);
        assert_eq!(
            discard(disk - 8, 8, 0),
            Ok(Request::Discard {
                offset: (disk - 8) * 512,
                len: 8 * 512
            })
        );
        let unmap = |unmap| {
            Ok(Request::WriteZeroes {
                offset: 512,
                len: 0,
                unmap,
            })
        };
        assert_eq!(zero(1, 0, 0), unmap(false));
        assert_eq!(zero(1, 0, 1), unmap(true));
        for (sector, sectors) in [
            (disk - 7, 8),
            (disk, 1),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (1 << 55, 0),
            (0, u32::MAX),
            (0, DISCARD_SECTORS_MAX + 1),
        ] {
            assert_eq!(discard(sector, sectors, 0), Err(Status::IoError));
            assert_eq!(zero(sector, sectors, 0), Err(Status::IoError));
        }
        assert_eq!(
            zero(0, WRITE_ZEROES_SECTORS_MAX + 1, 0),
            Err(Status::IoError)
        );
        for flags in [2, 3, 1 << 31, u32::MAX] {
            assert_eq!(discard(0, 1, flags), Err(Status::Unsupported));
            assert_eq!(zero(0, 1, flags), Err(Status::Unsupported));
        }
        assert_eq!(discard(0, 1, 1), Err(Status::Unsupported), "unmap");
    }
}
