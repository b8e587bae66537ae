//! What the driver is told of a disk before it asks for anything: the feature bits and the configuration space (virtio 1.2, 5.2.3
//! and 5.2.4).

use super::image::Image;
use crate::devices::virtio::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC};

/// VIRTIO_BLK_F_SEG_MAX: the driver is told how many buffers a request may have. Without it Linux uses one.
pub const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO: the disk cannot be written to.
pub const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE: the driver is told the block size.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH: the driver says when what it wrote must be durable.
pub const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_MQ: there are several queues.
pub const F_MQ: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD: the driver may say what nobody will read again.
pub const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES: the driver need not send zeroes to have them written.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// A queue's size.
pub const QUEUE_SIZE: u16 = 256;
/// As many queues as a disk has at most, and so threads and rings.
pub const QUEUES_MAX: u16 = 16;
/// As many buffers as a request may have: all but the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The block size that the driver is told.
const BLK_SIZE: u32 = 512;
/// As many sectors as one request may discard: 1 GiB.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// As many sectors as one request may zero: 32 MiB, since it may be that they must be written.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 16;
/// What the driver should align a discard to, in sectors: the block of most file systems, below which nothing is freed.
const DISCARD_ALIGNMENT: u32 = 8;
/// As many segments as a discard or write-zeroes request may have.
const ZERO_SEG_MAX: u32 = 1;

/// Which features a disk with so many queues offers.
pub fn features(image: &Image, queues: u16) -> u64 {
    let kind = if image.readonly {
        F_RO
    } else {
        F_DISCARD | F_WRITE_ZEROES
    };
    let several = if queues > 1 { F_MQ } else { 0 };
    let always = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX;
    always | kind | several
}

/// struct virtio_blk_config up to write_zeroes_may_unmap and what pads it (virtio 1.2, 5.2.4).
pub fn space(image: &Image, queues: u16) -> Vec<u8> {
    let mut space = Vec::with_capacity(60);
    space.extend(image.sectors.to_le_bytes());
    // size_max
    space.extend([0; 4]);
    space.extend(SEG_MAX.to_le_bytes());
    // geometry
    space.extend([0; 4]);
    space.extend(BLK_SIZE.to_le_bytes());
    // topology, writeback and a byte that is not used
    space.extend([0; 10]);
    space.extend(queues.to_le_bytes());
    if !image.readonly {
        for field in [
            DISCARD_SECTORS_MAX,
            ZERO_SEG_MAX,
            DISCARD_ALIGNMENT,
            WRITE_ZEROES_SECTORS_MAX,
            ZERO_SEG_MAX,
        ] {
            space.extend(field.to_le_bytes());
        }
        // write_zeroes_may_unmap
        space.extend([1, 0, 0, 0]);
    }
    space
}
