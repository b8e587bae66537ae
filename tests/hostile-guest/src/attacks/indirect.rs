//! Tables of descriptors beside the queue's own (virtio 1.2, 2.7.5.3) that contradict themselves.

use super::{Attack, breaks};
use crate::disk::{Disk, HEADER_LEN, SECTOR};
use crate::outcome::Outcome;
use crate::ring::{DESCRIPTOR_SIZE, Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("indirect-nested", nested),
    Attack::disk("indirect-within-itself", within_itself),
    Attack::disk("indirect-that-goes-on", that_goes_on),
    Attack::disk("indirect-longer-than-the-queue", longer_than_the_queue),
    Attack::disk("indirect-oversized", oversized),
    Attack::disk("indirect-of-odd-size", of_odd_size),
    Attack::disk("indirect-outside-ram", outside_ram),
    Attack::disk("indirect-next-outside-table", next_outside_table),
    Attack::disk("indirect-cycle", cycle),
];

const ENTRY: u32 = DESCRIPTOR_SIZE as u32;

/// Where a table is, behind all the data.
fn table(disk: &Disk) -> u64 {
    disk.data() + 0x10_0000
}

/// Writes the request's header, data and status as a table of three.
fn write_request(disk: &Disk, table: u64) {
    Descriptor::readable(disk.header(), HEADER_LEN)
        .then(1)
        .write(table, 0);
    Descriptor::writable(disk.data(), SECTOR)
        .then(2)
        .write(table, 1);
    Descriptor::writable(disk.status(), 1).write(table, 2);
}

fn refer(disk: &Disk, descriptor: Descriptor) {
    disk.driver.ring.describe(0, descriptor);
}

/// 2.7.5.3.1: no table refers to another one.
fn nested(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let (outer, inner) = (table(disk), table(disk) + 0x1000);
        write_request(disk, inner);
        Descriptor::table(inner, 3 * ENTRY).write(outer, 0);
        refer(disk, Descriptor::table(outer, ENTRY));
    })
}

/// 2.7.5.3.1: no table refers to another one, and not to itself.
fn within_itself(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let table = table(disk);
        Descriptor::table(table, ENTRY).write(table, 0);
        refer(disk, Descriptor::table(table, ENTRY));
    })
}

/// 2.7.5.3.1: a descriptor that refers to a table has no NEXT.
fn that_goes_on(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let table = table(disk);
        write_request(disk, table);
        refer(disk, Descriptor::table(table, 3 * ENTRY).then(3));
        disk.driver
            .ring
            .describe(3, Descriptor::writable(disk.data(), SECTOR));
    })
}

/// 2.7.5.3.1: no chain is longer than the queue, whatever table it is in.
fn longer_than_the_queue(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let table = table(disk);
        write_request(disk, table);
        let data = Descriptor::writable(disk.data(), SECTOR);
        for index in 1..SIZE {
            data.then(index + 1).write(table, index);
        }
        Descriptor::writable(disk.status(), 1).write(table, SIZE);
        refer(
            disk,
            Descriptor::table(table, (u32::from(SIZE) + 1) * ENTRY),
        );
    })
}

/// 2.7.5.3: a table of more entries than an index can name, up to 4 GiB, which is more than all of RAM.
fn oversized(stage: &mut Stage) -> Outcome {
    [0x10_0000, 0x8000_0000, 0xffff_fff0]
        .into_iter()
        .try_for_each(|len| {
            breaks(stage, |disk, _| {
                write_request(disk, table(disk));
                refer(disk, Descriptor::table(table(disk), len));
            })
        })
}

/// 2.7.5.3: a table is entries of 16 bytes, and one at least.
fn of_odd_size(stage: &mut Stage) -> Outcome {
    [0, 1, 15, 17, 3 * ENTRY + 1, u32::MAX]
        .into_iter()
        .try_for_each(|len| {
            breaks(stage, |disk, _| {
                write_request(disk, table(disk));
                refer(disk, Descriptor::table(table(disk), len));
            })
        })
}

/// 2.7.5.3: a table is in guest memory. These are behind its end, across it, and around the address space.
fn outside_ram(stage: &mut Stage) -> Outcome {
    let end = stage.ram_end;
    [end + 0x1000, end - 8, !0xf, !0x7]
        .into_iter()
        .try_for_each(|place| {
            breaks(stage, |disk, _| {
                refer(disk, Descriptor::table(place, 3 * ENTRY));
            })
        })
}

/// 2.7.5.3: within a table, `next` is an index of that table.
fn next_outside_table(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let table = table(disk);
        write_request(disk, table);
        refer(disk, Descriptor::table(table, 2 * ENTRY));
    })
}

/// 2.7.5.2: loops are forbidden, here from the table's second entry to itself.
fn cycle(stage: &mut Stage) -> Outcome {
    breaks(stage, |disk, _| {
        let table = table(disk);
        write_request(disk, table);
        let data = Descriptor::writable(disk.data(), SECTOR).then(1);
        data.write(table, 1);
        refer(disk, Descriptor::table(table, 3 * ENTRY));
    })
}
