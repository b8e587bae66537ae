//! Chains of descriptors that contradict themselves, or that reach what is not the guest's.

use super::{Attack, breaks};
use crate::disk::{Disk, HEADER_LEN, SECTOR};
use crate::outcome::Outcome;
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("chain-cycle-of-one", cycle_of_one),
    Attack::disk("chain-cycle-of-three", cycle_of_three),
    Attack::disk("chain-next-outside-table", next_outside_table),
    Attack::disk("chain-buffer-outside-ram", buffer_outside_ram),
    Attack::disk("chain-buffer-across-ram-end", buffer_across_ram_end),
    Attack::disk("chain-buffer-around-the-address-space", buffer_around),
    Attack::disk("chain-readable-behind-writable", readable_behind_writable),
    Attack::disk("chain-of-more-than-4-gib", more_than_4_gib),
];

fn describe(disk: &Disk, index: u16, descriptor: Descriptor) {
    disk.driver.ring.describe(index, descriptor);
}

/// 2.7.5.2: loops are forbidden. The header goes on with itself.
fn cycle_of_one(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let header = Descriptor::readable(disk.header(), HEADER_LEN);
        describe(disk, 0, header.then(0));
    })
}

/// 2.7.5.2: loops are forbidden. Three buffers of data in a circle.
fn cycle_of_three(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let data = Descriptor::writable(disk.data(), SECTOR);
        for (index, next) in [(1, 2), (2, 3), (3, 1)] {
            describe(disk, index, data.then(next));
        }
    })
}

/// 2.7.5: `next` is an index of the table.
fn next_outside_table(stage: &mut Stage) -> Outcome {
    [SIZE, 0xffff].into_iter().try_for_each(|next| {
        breaks(stage, |disk, _| {
            let header = Descriptor::readable(disk.header(), HEADER_LEN);
            describe(disk, 0, header.then(next));
        })
    })
}

/// 2.7.5: `addr` is an address in guest memory; the device must not reach anything else of the host's.
fn buffer_outside_ram(stage: &mut Stage) -> Outcome {
    let own_registers = stage.disk.driver.device.common;
    let behind_ram = stage.ram_end + 0x1000;
    [own_registers, behind_ram, 1 << 40, 1 << 63]
        .into_iter()
        .try_for_each(|place| {
            breaks(stage, |disk, _| {
                describe(disk, 1, Descriptor::writable(place, SECTOR).then(2));
            })
        })
}

/// 2.7.5: the buffer begins in RAM and ends behind it.
fn buffer_across_ram_end(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, end| {
        describe(disk, 1, Descriptor::writable(end - 256, SECTOR).then(2));
    })
}

/// 2.7.5: the buffer's end is at the beginning of the address space.
fn buffer_around(stage: &mut Stage) -> Outcome {
    [SECTOR, u32::MAX].into_iter().try_for_each(|len| {
        breaks(stage, |disk, _| {
            describe(disk, 1, Descriptor::writable(u64::MAX - 255, len).then(2));
        })
    })
}

/// 2.7.4.2: what the device may write comes behind what it may read.
fn readable_behind_writable(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let late = Descriptor::readable(disk.header(), HEADER_LEN);
        describe(disk, 2, late.then(3));
        describe(disk, 3, Descriptor::writable(disk.status(), 1));
    })
}

/// 2.7.5.2: no chain is longer than 2^32 bytes. Each descriptor has most of RAM.
fn more_than_4_gib(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, end| {
        // The most that a length can say, of what is there.
        let len = u32::try_from(end).map_or(u32::MAX, |end| end - 0x1000);
        assert!(
            u64::from(len) * u64::from(SIZE - 2) > 1 << 32,
            "RAM is too small"
        );
        for index in 1..SIZE - 1 {
            describe(
                disk,
                index,
                Descriptor::writable(0x1000, len).then(index + 1),
            );
        }
        describe(disk, SIZE - 1, Descriptor::writable(disk.status(), 1));
    })
}
