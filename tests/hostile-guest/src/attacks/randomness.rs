//! The worst of the others, done to the source of randomness: the checks are every device's.

use super::{Attack, touches_no_more};
use crate::device::QUEUE_DRIVER;
use crate::entropy;
use crate::outcome::{Outcome, is};
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    attack("randomness-ring-outside-ram", ring_outside_ram),
    attack("randomness-chain-cycle", cycle),
    attack("randomness-buffer-outside-ram", buffer_outside_ram),
    attack("randomness-available-index-jumps", index_jumps),
    attack("randomness-readable-buffer", readable),
    attack("randomness-reset-in-flight", reset_in_flight),
];

const fn attack(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Attack {
    Attack {
        name,
        on: entropy::KIND,
        run,
    }
}

/// Makes a chain available that begins with this descriptor, and waits until the device asks for a reset.
fn breaks(stage: &mut Stage, first: Descriptor) -> Outcome {
    let driver = &mut stage.entropy.driver;
    driver.bring_up()?;
    driver.ring.describe(0, first);
    driver.ring.offer(0);
    driver.kick();
    driver.device.needs_reset()
}

/// 2.7: each part is in guest memory.
fn ring_outside_ram(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.entropy.driver;
    driver.negotiate()?;
    driver.lay_out();
    driver.device.put_address(QUEUE_DRIVER, stage.ram_end);
    driver.enable();
    driver.go();
    driver.device.needs_reset()
}

/// 2.7.5.2: loops are forbidden.
fn cycle(stage: &mut Stage) -> Outcome {
    let buffer = stage.entropy.driver.ring.buffers();
    breaks(stage, Descriptor::writable(buffer, 32).then(0))
}

/// 2.7.5: buffers are in guest memory.
fn buffer_outside_ram(stage: &mut Stage) -> Outcome {
    let behind = stage.ram_end;
    breaks(stage, Descriptor::writable(behind, 32))
}

/// 2.7.6: the index counts heads.
fn index_jumps(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.entropy.driver;
    driver.bring_up()?;
    driver.ring.publish_index(SIZE + 1);
    driver.kick();
    driver.device.needs_reset()
}

/// 5.4.6.1: no buffer is to be read by the device. It gets nothing, and the device goes on.
fn readable(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.entropy.driver;
    driver.bring_up()?;
    let buffer = driver.ring.buffers();
    driver.ring.describe(0, Descriptor::readable(buffer, 32));
    let used = driver.ask(0)?;
    is("the number of random bytes", used.len, 0u64)?;
    driver.device.runs()?;
    stage.entropy.works()
}

/// 2.4.1: a device that is reset touches no memory any more. It has a ring full of requests when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    const LEN: u32 = 4096;
    let driver = &mut stage.entropy.driver;
    driver.bring_up()?;
    let place = driver.ring.buffers();
    for head in 0..SIZE {
        let at = place + u64::from(head) * u64::from(LEN);
        driver.ring.describe(head, Descriptor::writable(at, LEN));
        driver.ring.put(head);
    }
    driver.ring.publish();
    driver.kick();
    driver.device.reset()?;
    let len = u64::from(SIZE) * u64::from(LEN);
    touches_no_more(stage, (place, len), |stage| {
        [stage.entropy.driver.ring.used_index()]
    })
}
