//! Rings that cannot be where, or as large as, the driver says. The device looks at them when the driver is ready.

use super::Attack;
use crate::device::{QUEUE_DESCRIPTORS, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_SIZE};
use crate::driver::Driver;
use crate::outcome::Outcome;
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("ring-outside-ram-descriptors", descriptors_outside_ram),
    Attack::disk("ring-outside-ram-driver", driver_outside_ram),
    Attack::disk("ring-outside-ram-device", device_outside_ram),
    Attack::disk("ring-across-ram-end", across_ram_end),
    Attack::disk("ring-misaligned", misaligned),
    Attack::disk("queue-size-zero", size_zero),
    Attack::disk("queue-size-not-a-power-of-two", size_not_a_power_of_two),
    Attack::disk("queue-size-above-maximum", size_above_maximum),
    Attack::disk("rings-on-each-other", on_each_other),
    Attack::disk("driver-ok-without-queue", without_queue),
];

/// Brings the disk up with a first queue that `spoil` has spoilt.
fn refuses(stage: &mut Stage, spoil: impl FnOnce(&Driver)) -> Outcome {
    let driver = &mut stage.disk.driver;
    driver.negotiate()?;
    driver.lay_out();
    spoil(driver);
    driver.enable();
    driver.go();
    driver.device.needs_reset()
}

/// 2.7: each part is in guest memory. The table is behind the end of RAM.
fn descriptors_outside_ram(stage: &mut Stage) -> Outcome {
    let place = stage.ram_end + 0x10_0000;
    refuses(stage, |driver| {
        driver.device.put_address(QUEUE_DESCRIPTORS, place);
    })
}

/// 2.7: the driver area is in the last page of the 64-bit address space, so that its end is at 0.
fn driver_outside_ram(stage: &mut Stage) -> Outcome {
    refuses(stage, |driver| {
        driver.device.put_address(QUEUE_DRIVER, !0xff);
    })
}

/// 2.7: the device area is the device's own registers.
fn device_outside_ram(stage: &mut Stage) -> Outcome {
    refuses(stage, |driver| {
        let registers = driver.device.common;
        driver.device.put_address(QUEUE_DEVICE, registers);
    })
}

/// 2.7: each part begins in RAM and ends behind it.
fn across_ram_end(stage: &mut Stage) -> Outcome {
    let place = stage.ram_end - 0x10;
    [QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE]
        .into_iter()
        .try_for_each(|register| {
            refuses(stage, |driver| driver.device.put_address(register, place))
        })
}

/// 2.7.1: the table is aligned to 16 bytes, the driver area to 2, the device area to 4.
fn misaligned(stage: &mut Stage) -> Outcome {
    [(QUEUE_DESCRIPTORS, 8), (QUEUE_DRIVER, 1), (QUEUE_DEVICE, 2)]
        .into_iter()
        .try_for_each(|(register, offset)| {
            refuses(stage, |driver| {
                let place = driver.device.get(register) + offset;
                driver.device.put(register, place);
            })
        })
}

fn size(stage: &mut Stage, size: u64) -> Outcome {
    refuses(stage, |driver| driver.device.put(QUEUE_SIZE, size))
}

/// 4.1.4.3: a queue of size 0 is not available, and this one is enabled.
fn size_zero(stage: &mut Stage) -> Outcome {
    size(stage, 0)
}

/// 4.1.4.3.2 and 2.7: the size is a power of two.
fn size_not_a_power_of_two(stage: &mut Stage) -> Outcome {
    [3, 63, 65, 255]
        .into_iter()
        .try_for_each(|number| size(stage, number))
}

/// 4.1.5.1.3: the driver may make a queue smaller than the device's maximum, not larger.
fn size_above_maximum(stage: &mut Stage) -> Outcome {
    let maximum = {
        stage.disk.driver.device.reset()?;
        stage.disk.driver.device.get(QUEUE_SIZE)
    };
    [2 * maximum, 0x8000, 0xffff]
        .into_iter()
        .try_for_each(|number| size(stage, number))
}

/// 2.7: the parts are three. Here they are one, so that the device reads what it writes. It may find that out or not; a reset mends it.
fn on_each_other(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    let place = disk.driver.ring.driver();
    for register in [QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE] {
        disk.driver.device.put_address(register, place);
    }
    disk.driver.enable();
    disk.driver.go();
    disk.driver.device.runs()?;
    disk.driver.ring.offer(0);
    disk.driver.kick();
    (0..4).try_for_each(|_| stage.entropy.works())
}

/// 3.1.1: the queues are set up before DRIVER_OK, and a disk has one at least (5.2.2).
fn without_queue(stage: &mut Stage) -> Outcome {
    stage.disk.driver.negotiate()?;
    stage.disk.driver.go();
    stage.disk.driver.device.needs_reset()
}
