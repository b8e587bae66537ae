//! Memory that is not the guest's, asked for and touched (virtio 1.2, 5.15.6). What is no sense is answered as an error; what is no request ends
//! in a reset; and what is not plugged, no device reaches.

use super::{Attack, breaks};
use crate::disk;
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, is};
use crate::plugged::{
    self, ACK, ANSWER_LEN, CONFIG_LEN, ERROR, NACK, PLUG, REQUEST_LEN, STATE, UNPLUG, UNPLUG_ALL,
    answer_at,
};
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    attack("mem-more-than-requested", more_than_requested),
    attack("mem-outside-the-region", outside_the_region),
    attack("mem-blocks-that-are-none", blocks_that_are_none),
    attack("mem-unknown-requests", unknown_requests),
    attack("mem-request-too-short", request_too_short),
    attack("mem-answer-nowhere", answer_nowhere),
    attack("mem-config-written", config_written),
    attack("mem-to-and-fro", to_and_fro),
    attack("mem-reset-in-flight", reset_in_flight),
    Attack::disk("mem-reads-into-unplugged", reads_into_unplugged),
    Attack::disk("mem-unplugged-under-a-read", unplugged_under_a_read),
];

const fn attack(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Attack {
    Attack {
        name,
        on: plugged::KIND,
        run,
    }
}

/// 5.15.6.2: the host says how much the guest may have.
fn more_than_requested(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let (start, block, requested) = (memory.start(), memory.block(), memory.requested());
    let count = (requested / block) as u16;
    memory.answers(PLUG, start, count + 1, NACK)?;
    memory.answers(PLUG, start, count, ACK)?;
    memory.answers(PLUG, start + requested, 1, NACK)?;
    memory.has(requested)
}

/// 5.15.6.1: requests are for blocks of the region.
fn outside_the_region(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let (start, block) = (memory.start(), memory.block());
    let end = start + memory.len();
    let places = [0, start - block, end, end - block, 0u64.wrapping_sub(block)];
    for kind in [PLUG, UNPLUG, STATE] {
        for place in places {
            memory.answers(kind, place, u16::MAX, ERROR)?;
            memory.answers(kind, place, 2, ERROR)?;
        }
        memory.answers(kind, end, 1, ERROR)?;
    }
    memory.has(0)
}

/// 5.15.6.1: a block is plugged or not, begins at a multiple of its size, and there is at least one.
fn blocks_that_are_none(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let (start, block) = (memory.start(), memory.block());
    memory.answers(UNPLUG, start, 1, ERROR)?;
    memory.answers(PLUG, start, 1, ACK)?;
    for (kind, address, count) in [
        (PLUG, start, 1),
        (PLUG, start, 2),
        (PLUG, start + block, 0),
        (PLUG, start + block + 1, 1),
        (PLUG, start + block / 2, 1),
        (UNPLUG, start, 0),
        (UNPLUG, start, 2),
        (UNPLUG, start + 4096, 1),
        (STATE, start, 0),
        (STATE, start + 4096, 1),
    ] {
        memory.answers(kind, address, count, ERROR)?;
    }
    memory.has(block)
}

/// 5.15.6: there are four of them.
fn unknown_requests(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let start = memory.start();
    for kind in [4, 5, 0x100, 0x8000, u16::MAX] {
        memory.answers(kind, start, 1, ERROR)?;
    }
    memory.has(0)
}

/// Offers this chain, and waits until the device asks for a reset.
fn ends_the_device(stage: &mut Stage, chain: [Option<Descriptor>; 2]) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let start = memory.start();
    memory.prepare(0, STATE, start, 1);
    let ring = &mut memory.driver.ring;
    let both = chain[0].is_some() && chain[1].is_some();
    (0..)
        .zip(chain.into_iter().flatten())
        .for_each(|(index, descriptor)| {
            let goes_on = both && index == 0;
            let descriptor = if goes_on {
                descriptor.then(1)
            } else {
                descriptor
            };
            ring.describe(index, descriptor);
        });
    ring.offer(0);
    memory.driver.kick();
    memory.driver.device.needs_reset()
}

/// 5.15.6: a request has 24 bytes, and its answer 10.
fn request_too_short(stage: &mut Stage) -> Outcome {
    let ring = &stage.plugged.driver.ring;
    let (request, answer) = (ring.buffers(), answer_at(ring));
    let whole = Some(Descriptor::readable(request, REQUEST_LEN));
    let room = Some(Descriptor::writable(answer, ANSWER_LEN));
    for len in [1, 2, REQUEST_LEN - 1] {
        let short = Some(Descriptor::readable(request, len));
        ends_the_device(stage, [short, room])?;
    }
    for len in [1, ANSWER_LEN - 1] {
        let short = Some(Descriptor::writable(answer, len));
        ends_the_device(stage, [whole, short])?;
    }
    ends_the_device(stage, [whole, None])?;
    ends_the_device(stage, [None, room])
}

/// 2.7: the answer's place is guest memory, which unplugged memory is not.
fn answer_nowhere(stage: &mut Stage) -> Outcome {
    let request = Some(Descriptor::readable(
        stage.plugged.driver.ring.buffers(),
        REQUEST_LEN,
    ));
    let region = stage.plugged.start();
    for place in [stage.ram_end, 0xc000_0000, region, 0u64.wrapping_sub(16)] {
        let answer = Some(Descriptor::writable(place, ANSWER_LEN));
        ends_the_device(stage, [request, answer])?;
    }
    Ok(())
}

/// 5.15.4: the configuration is the device's to say.
fn config_written(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let fields = |memory: &plugged::Plugged| {
        [
            memory.block(),
            memory.start(),
            memory.len(),
            memory.plugged(),
            memory.requested(),
        ]
    };
    let before = fields(memory);
    let config = memory.driver.device.config;
    for at in (0..CONFIG_LEN + 16).step_by(4) {
        mmio::write(config + at, Width::Four, 0xffff_ffff);
        mmio::write(config + at + 1, Width::One, 0xff);
        mmio::write(config + at, Width::Two, 0xffff);
    }
    is("whether it stays", fields(memory) == before, true)?;
    memory.driver.device.runs()
}

/// Every other block, plugged and unplugged: each change splits or joins a mapping of the host's.
fn to_and_fro(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let (start, block) = (memory.start(), memory.block());
    let count = memory.requested() / block;
    for round in 0..8 {
        for index in 0..count {
            memory.answers(PLUG, start + 2 * index * block, 1, ACK)?;
        }
        memory.has(count * block)?;
        if round % 2 == 0 {
            memory.answers(UNPLUG_ALL, u64::MAX, u16::MAX, ACK)?;
        } else {
            for index in 0..count {
                memory.answers(UNPLUG, start + 2 * index * block, 1, ACK)?;
            }
        }
        memory.has(0)?;
    }
    Ok(())
}

/// 2.4.1: a device that is reset does nothing any more. It has a ring full of requests when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    let memory = &mut stage.plugged;
    memory.bring_up()?;
    let start = memory.start();
    for head in (0..SIZE).step_by(2) {
        let kind = if head % 4 == 0 { PLUG } else { UNPLUG };
        memory.prepare(head, kind, start, 1);
        memory.driver.ring.put(head);
    }
    memory.driver.ring.publish();
    memory.driver.kick();
    memory.driver.device.reset()?;
    let used = |stage: &Stage| stage.plugged.driver.ring.used_index();
    let has = |stage: &Stage| stage.plugged.plugged();
    let before = (used(stage), has(stage));
    // As long as another device takes to answer a few times, through the host.
    (0..8).try_for_each(|_| stage.disk.works())?;
    is("the device's index", used(stage), before.0)?;
    is("the size of what is plugged", has(stage), before.1)
}

/// What the guest does not have, the disk does not write to.
fn reads_into_unplugged(stage: &mut Stage) -> Outcome {
    stage.plugged.bring_up()?;
    let (start, end) = (
        stage.plugged.start(),
        stage.plugged.start() + stage.plugged.len(),
    );
    for place in [start, end - u64::from(disk::SECTOR), end] {
        breaks(stage, |disk, _| {
            let nowhere = Descriptor::writable(place, disk::SECTOR);
            disk.driver.ring.describe(1, nowhere.then(2));
        })?;
    }
    Ok(())
}

/// Memory goes while the disk writes to it. The disk writes it to no avail or asks for a reset, as it happens.
fn unplugged_under_a_read(stage: &mut Stage) -> Outcome {
    let start = {
        let memory = &mut stage.plugged;
        memory.bring_up()?;
        memory.start()
    };
    for _ in 0..16 {
        stage.plugged.answers(PLUG, start, 1, ACK)?;
        let disk = &mut stage.disk;
        disk.driver.bring_up()?;
        disk.prepare_known();
        let (header, status) = (disk.header(), disk.status());
        let ring = &mut disk.driver.ring;
        for head in (0..SIZE - 2).step_by(3) {
            let place = start + u64::from(head) * u64::from(disk::SECTOR);
            ring.describe(
                head,
                Descriptor::readable(header, disk::HEADER_LEN).then(head + 1),
            );
            ring.describe(
                head + 1,
                Descriptor::writable(place, disk::SECTOR).then(head + 2),
            );
            ring.describe(head + 2, Descriptor::writable(status, 1));
            ring.put(head);
        }
        ring.publish();
        disk.driver.kick();
        stage.plugged.answers(UNPLUG, start, 1, ACK)?;
        stage.plugged.has(0)?;
    }
    Ok(())
}
