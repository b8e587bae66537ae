//! The ring of available heads (virtio 1.2, 2.7.6 and 2.7.13): indices that jump, heads that are not there or there twice.

use super::Attack;
use crate::disk::{HEADER_LEN, READ, SECTOR};
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("available-index-jumps-ahead", jumps_ahead),
    Attack::disk("available-index-goes-back", goes_back),
    Attack::disk("head-outside-table", outside_table),
    Attack::disk("head-twice", twice),
    Attack::disk("head-in-every-place", in_every_place),
    Attack::disk("reset-with-requests-in-flight", reset_in_flight),
    Attack::disk("kicks-without-end", kicks_without_end),
    Attack::disk("data-onto-the-rings", data_onto_the_rings),
    Attack::disk("driver-goes-on-after-needs-reset", goes_on),
];

/// A good request, and then an index that is `change` further on.
fn moves(stage: &mut Stage, change: u16) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.works()?;
    disk.prepare_known();
    let index = disk.driver.ring.index().wrapping_add(change);
    disk.driver.ring.publish_index(index);
    disk.driver.kick();
    disk.driver.device.needs_reset()
}

/// 2.7.6: the index counts heads that were put into the ring, which has room for as many as the queue is long.
fn jumps_ahead(stage: &mut Stage) -> Outcome {
    [SIZE + 1, 2 * SIZE, 0x8000]
        .into_iter()
        .try_for_each(|change| moves(stage, change))
}

/// 2.7.6.1: the driver never lowers the index.
fn goes_back(stage: &mut Stage) -> Outcome {
    moves(stage, 0u16.wrapping_sub(1))
}

/// 2.7.6: a head is an index of the table.
fn outside_table(stage: &mut Stage) -> Outcome {
    [SIZE, 0x8000, 0xffff].into_iter().try_for_each(|head| {
        let disk = &mut stage.disk;
        disk.driver.bring_up()?;
        disk.driver.ring.offer(head);
        disk.driver.kick();
        disk.driver.device.needs_reset()
    })
}

/// 2.7.13: a chain belongs to the device until that gives it back. One head is there twice at a time.
fn twice(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.prepare_known();
    disk.driver.ring.put(0);
    disk.driver.ring.put(0);
    disk.driver.ring.publish();
    disk.driver.kick();
    disk.driver.device.needs_reset()
}

/// The same, with a ring that is full of one head.
fn in_every_place(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.prepare_known();
    (0..SIZE).for_each(|_| disk.driver.ring.put(0));
    disk.driver.ring.publish();
    disk.driver.kick();
    disk.driver.device.needs_reset()
}

/// 2.4.1: a device that is reset touches no memory of the queues' any more. It has a ring full of reads when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    const HEADS: u16 = SIZE / 2;
    const UNTOUCHED: u8 = 0x5a;
    /// A buffer's place, for the data and the status behind them.
    const STRIDE: u64 = SECTOR as u64 + 8;
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.write_header(READ, 8);
    let data = disk.data();
    let len = u64::from(HEADS) * STRIDE;
    for request in 0..HEADS {
        let head = 2 * request;
        let place = data + u64::from(request) * STRIDE;
        let ring = &mut disk.driver.ring;
        let header = Descriptor::readable(ring.buffers(), HEADER_LEN);
        ring.describe(head, header.then(head + 1));
        ring.describe(head + 1, Descriptor::writable(place, SECTOR + 1));
        ring.put(head);
    }
    disk.driver.ring.publish();
    disk.driver.kick();
    disk.driver.device.reset()?;
    ram::fill(data, len, UNTOUCHED);
    let used = disk.driver.ring.used_index();
    // As long as the other device takes to answer a few times, through the host.
    (0..8).try_for_each(|_| stage.entropy.works())?;
    let disk = &stage.disk;
    is(
        "whether memory stayed as it was",
        ram::holds(data, len, UNTOUCHED),
        true,
    )?;
    is("the device's index", disk.driver.ring.used_index(), used)
}

/// 2.7.13.4: a kick says that something is available. A thousand of them say nothing, and then one does.
fn kicks_without_end(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    (0..1000).for_each(|_| disk.driver.kick());
    disk.works()?;
    disk.driver.device.runs()
}

/// 2.7: the parts of a queue are the driver's and the device's to write, not a request's. This one reads sectors onto the available ring,
/// which then has the disk's numbers for its index.
fn data_onto_the_rings(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.prepare_known();
    let ring = &mut disk.driver.ring;
    let data = Descriptor::writable(ring.driver(), SECTOR);
    ring.describe(1, data.then(2));
    ring.offer(0);
    disk.driver.kick();
    // Nobody kicks for what it reads there, so the device need not look before this.
    disk.driver.answer()?;
    disk.driver.kick();
    disk.driver.device.needs_reset()
}

/// 2.1.1: a driver relies on nothing of a device that says NEEDS_RESET, and resets it. This one says DRIVER_OK again, and asks on.
fn goes_on(stage: &mut Stage) -> Outcome {
    moves(stage, SIZE + 1)?;
    let disk = &mut stage.disk;
    let used = disk.driver.ring.used_index();
    disk.driver.go();
    disk.driver.ring.offer(0);
    disk.driver.kick();
    (0..4).try_for_each(|_| stage.entropy.works())?;
    let disk = &stage.disk;
    is("the device's index", disk.driver.ring.used_index(), used)?;
    disk.driver.device.needs_reset()
}
