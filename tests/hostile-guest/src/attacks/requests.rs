//! Requests that the disk cannot do (virtio 1.2, 5.2.6). One that is not a request at all ends in a reset; any other is answered, and the
//! device goes on.

use super::{Attack, breaks};
use crate::disk::{Disk, HEADER_LEN, READ, SECTOR};
use crate::outcome::Outcome;
use crate::ring::Descriptor;
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("request-without-status", without_status),
    Attack::disk("request-without-header", without_header),
    Attack::disk("request-with-half-a-header", half_a_header),
    Attack::disk("request-sector-overflow", sector_overflow),
    Attack::disk("request-behind-the-end", behind_the_end),
    Attack::disk("request-of-half-a-sector", half_a_sector),
    Attack::disk("request-of-no-known-type", of_no_known_type),
];

/// VIRTIO_BLK_T_OUT, _FLUSH, _DISCARD, _SECURE_ERASE
const WRITE: u32 = 1;
const DISCARD: u32 = 11;
const SECURE_ERASE: u32 = 14;
/// VIRTIO_BLK_S_IOERR
const IO_ERROR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP
const UNSUPPORTED: u8 = 2;

fn describe(disk: &Disk, index: u16, descriptor: Descriptor) {
    disk.driver.ring.describe(index, descriptor);
}

/// 5.2.6: the last byte of a request is the status, which the device writes. Nothing here can be written.
fn without_status(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        describe(disk, 0, Descriptor::readable(disk.header(), HEADER_LEN));
    })?;
    breaks(stage, |disk, _| {
        disk.write_header(WRITE, 8);
        describe(disk, 1, Descriptor::readable(disk.data(), SECTOR));
    })
}

/// 5.2.6: a request begins with its header. Nothing here can be read.
fn without_header(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        describe(disk, 0, Descriptor::writable(disk.data(), SECTOR).then(2));
    })
}

/// 5.2.6: the header has 16 bytes.
fn half_a_header(stage: &mut Stage) -> Outcome {
    [1, 8, 15].into_iter().try_for_each(|len| {
        breaks(stage, |disk, _| {
            describe(disk, 0, Descriptor::readable(disk.header(), len).then(1));
        })
    })
}

/// Asks for the sector, each way, and wants an I/O error.
fn fails(disk: &mut Disk, sector: u64, len: u32) -> Outcome {
    disk.prepare_known();
    describe(disk, 1, Descriptor::writable(disk.data(), len).then(2));
    disk.write_header(READ, sector);
    disk.answers(IO_ERROR)?;
    describe(disk, 1, Descriptor::readable(disk.data(), len).then(2));
    disk.write_header(WRITE, sector);
    disk.answers(IO_ERROR)
}

/// 5.2.6.1: a request lies within the disk. These sectors times 512, or with their length, are a place within it in 64 bits.
fn sector_overflow(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    [1 << 55, (1 << 55) + 3, 1 << 63, u64::MAX - 1, u64::MAX]
        .into_iter()
        .try_for_each(|sector| fails(disk, sector, 2 * SECTOR))?;
    disk.works()
}

/// 5.2.6.1: a request lies within the disk. These begin, or end, just behind it.
fn behind_the_end(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let capacity = disk.capacity();
    fails(disk, capacity, SECTOR)?;
    fails(disk, capacity - 1, 2 * SECTOR)?;
    disk.works()
}

/// 5.2.6: data are whole sectors.
fn half_a_sector(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    [1, SECTOR - 1, SECTOR + 1]
        .into_iter()
        .try_for_each(|len| fails(disk, 8, len))?;
    disk.works()
}

/// 5.2.6.2: what the device does not know, or what was not agreed upon, it answers as unsupported.
fn of_no_known_type(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    [2, 3, DISCARD, SECURE_ERASE, 0x8000_0000, u32::MAX]
        .into_iter()
        .try_for_each(|kind| {
            disk.prepare_known();
            disk.write_header(kind, 8);
            disk.answers(UNSUPPORTED)
        })?;
    disk.works()
}
