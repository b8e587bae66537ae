//! What no driver of a console does (virtio 1.2, 5.3.6).

use super::Attack;
use crate::console;
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, is};
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    attack("console-output-to-be-written", output_to_be_written),
    attack("console-output-of-zero-length", output_of_zero_length),
    attack("console-output-outside-ram", output_outside_ram),
    attack("console-one-queue-only", one_queue_only),
    attack("console-size-written", size_written),
    attack("console-reset-in-flight", reset_in_flight),
];

const fn attack(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Attack {
    Attack {
        name,
        on: console::KIND,
        run,
    }
}

/// Says what this descriptor tells and what follows it, and waits until the device asks for a reset.
fn breaks(stage: &mut Stage, chain: &[Descriptor]) -> Outcome {
    let console = &mut stage.console;
    console.bring_up()?;
    let ring = &mut console.transmit.ring;
    (0..).zip(chain).for_each(|(index, descriptor)| {
        let last = usize::from(index) + 1 == chain.len();
        let descriptor = if last {
            *descriptor
        } else {
            descriptor.then(index + 1)
        };
        ring.describe(index, descriptor);
    });
    ring.offer(0);
    console.transmit.kick();
    console.transmit.device.needs_reset()
}

/// 5.3.6.2.1: nothing in transmitq is for the device to write.
fn output_to_be_written(stage: &mut Stage) -> Outcome {
    let line = stage.console.empty_lines(16);
    breaks(stage, &[Descriptor::writable(line, 8)])?;
    let both = [Descriptor::readable(line, 8), Descriptor::writable(line, 8)];
    breaks(stage, &both)
}

/// 2.7.5: a buffer has a length.
fn output_of_zero_length(stage: &mut Stage) -> Outcome {
    let line = stage.console.empty_lines(16);
    breaks(stage, &[Descriptor::readable(line, 0)])?;
    let both = [Descriptor::readable(line, 8), Descriptor::readable(line, 0)];
    breaks(stage, &both)
}

/// 2.7: each part is in guest memory.
fn output_outside_ram(stage: &mut Stage) -> Outcome {
    let end = stage.ram_end;
    breaks(stage, &[Descriptor::readable(end, 8)])?;
    breaks(stage, &[Descriptor::readable(end - 4, 8)])?;
    breaks(stage, &[Descriptor::readable(0, u32::MAX)])
}

/// 5.3.2: there are two queues. A driver that enables one has no console, and may say so to itself.
fn one_queue_only(stage: &mut Stage) -> Outcome {
    for driver in [&mut stage.console.receive, &mut stage.console.transmit] {
        driver.negotiate()?;
        driver.lay_out();
        driver.enable();
        driver.go();
        driver.device.needs_reset()?;
    }
    Ok(())
}

/// 5.3.4: the size is the device's to say.
fn size_written(stage: &mut Stage) -> Outcome {
    let console = &mut stage.console;
    console.bring_up()?;
    let before = console.size();
    let config = console.transmit.device.config;
    for at in [0, 4, 8, 0xffc] {
        mmio::write(config + at, Width::Four, 0xffff_ffff);
        mmio::write(config + at + 1, Width::One, 0xff);
        mmio::write(config + at, Width::Two, 0xffff);
    }
    console.transmit.device.runs()?;
    is("the size", console.size(), before)
}

/// 2.4.1: a device that is reset takes and gives nothing any more. It has both rings full when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    const LEN: u64 = 256;
    let console = &mut stage.console;
    console.bring_up()?;
    let line = console.empty_lines(LEN);
    for head in 0..SIZE {
        let room = Descriptor::writable(console.receive.ring.buffers(), LEN as u32);
        console.receive.ring.describe(head, room);
        console.receive.ring.put(head);
        let line = Descriptor::readable(line, LEN as u32);
        console.transmit.ring.describe(head, line);
        console.transmit.ring.put(head);
    }
    console.receive.ring.publish();
    console.receive.kick();
    console.transmit.ring.publish();
    console.transmit.kick();
    console.transmit.device.reset()?;
    let used = |stage: &Stage| {
        let console = &stage.console;
        [&console.receive, &console.transmit].map(|driver| driver.ring.used_index())
    };
    let before = used(stage);
    // As long as another device takes to answer a few times, through the host.
    (0..8).try_for_each(|_| stage.entropy.works())?;
    let after = used(stage);
    is("receiveq's index", after[0], before[0])?;
    is("transmitq's index", after[1], before[1])?;
    is("what was heard that nobody typed", after[0], 0u16)
}
