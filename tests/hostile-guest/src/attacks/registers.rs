//! The common configuration: writes at the wrong time, and numbers of queues and vectors that do not exist. Nothing of it has an effect,
//! so the device goes on without a reset.

use super::Attack;
use crate::device::{
    CONFIG_VECTOR, DRIVER_FEATURE, NO_VECTOR, QUEUE_COUNT, QUEUE_ENABLE, QUEUE_REGISTERS,
    QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, STATUS, status,
};
use crate::driver::{Driver, VERSION_1};
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, is};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("queue-writes-after-driver-ok", writes_after_driver_ok),
    Attack::disk("queue-writes-after-enable", writes_after_enable),
    Attack::disk("queue-select-out-of-range", select_out_of_range),
    Attack::disk("msix-vector-out-of-range", vector_out_of_range),
    Attack::disk("msix-table-out-of-range", table_out_of_range),
    Attack::disk("msix-messages-to-nowhere", messages_to_nowhere),
    Attack::disk("features-not-offered", features_not_offered),
    Attack::disk("features-after-features-ok", features_late),
    Attack::disk("driver-ok-without-features-ok", without_features_ok),
    Attack::disk("status-bits-taken-back", status_taken_back),
    Attack::disk("kick-before-driver-ok", kick_before_driver_ok),
];

/// What is written where nothing may be written.
const VALUES: [u64; 5] = [0, 1, 32, 0x7fff, 0xffff_f000];

/// Writes all that there is of the selected queue, and wants it to stay as it is.
fn stays(driver: &Driver) -> Outcome {
    QUEUE_REGISTERS.into_iter().try_for_each(|register| {
        let before = driver.device.get(register);
        VALUES.into_iter().try_for_each(|value| {
            driver.device.put(register, value);
            is("a queue's register", driver.device.get(register), before)
        })
    })
}

/// 3.1.1 and 4.1.4.3.2: queues are set up before DRIVER_OK. A device that took this would use rings that it has not checked
/// (CVE-2026-5747).
fn writes_after_driver_ok(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.works()?;
    stays(&disk.driver)?;
    disk.works()?;
    disk.driver.device.runs()
}

/// 4.1.4.3.2: a queue is laid out before it is enabled.
fn writes_after_enable(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    disk.driver.enable();
    stays(&disk.driver)?;
    disk.driver.go();
    disk.works()?;
    disk.driver.device.runs()
}

/// 4.1.4.3.1: a queue that does not exist has size 0.
fn select_out_of_range(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    let device = disk.driver.device;
    let count = device.get(QUEUE_COUNT);
    for absent in [count, count + 1, 0x7fff, 0xffff] {
        device.put(QUEUE_SELECT, absent);
        is("an absent queue's size", device.get(QUEUE_SIZE), 0u64)?;
        is("an absent queue's enable", device.get(QUEUE_ENABLE), 0u64)?;
        stays(&disk.driver)?;
    }
    device.put(QUEUE_SELECT, 0);
    disk.driver.enable();
    disk.driver.go();
    device.put(QUEUE_SELECT, 0xffff);
    disk.works()?;
    device.runs()
}

/// 4.1.5.1.2.1: a vector that cannot be had reads back as VIRTIO_MSI_NO_VECTOR.
fn vector_out_of_range(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    let device = disk.driver.device;
    for register in [CONFIG_VECTOR, QUEUE_VECTOR] {
        device.put(register, device.vectors - 1);
        is("the last vector", device.get(register), device.vectors - 1)?;
        for vector in [device.vectors, 0x7ff, 0x8000, 0xfffe] {
            device.put(register, vector);
            is(
                "a vector that does not exist",
                device.get(register),
                NO_VECTOR,
            )?;
        }
    }
    disk.driver.enable();
    disk.driver.go();
    device.put(CONFIG_VECTOR, device.vectors);
    is(
        "the configuration's vector",
        device.get(CONFIG_VECTOR),
        NO_VECTOR,
    )?;
    disk.works()?;
    device.runs()
}

/// PCI Local Bus 3.0, 6.8.2: the MSI-X table has as many entries as the capability says.
fn table_out_of_range(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let device = disk.driver.device;
    let behind = device.table + 16 * device.vectors;
    for at in [behind, behind + 12, device.table + 0xffc] {
        mmio::write(at, Width::Four, 0xffff_ffff);
        is(
            "what is behind the table",
            mmio::read(at, Width::Four),
            0u64,
        )?;
    }
    // The last word of the last entry, and the first behind it.
    mmio::write(behind - 4, Width::Eight, 0xffff_ffff_0000_0001);
    is(
        "what is behind the table",
        mmio::read(behind, Width::Four),
        0u64,
    )?;
    disk.works()?;
    device.runs()
}

/// PCI Local Bus 3.0, 6.8.2: a message is an address and data that the system has given. These go to nobody, by a vector that is
/// unmasked and masked over and over.
fn messages_to_nowhere(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    let device = disk.driver.device;
    device.put(QUEUE_VECTOR, device.vectors - 1);
    disk.driver.enable();
    disk.driver.go();
    let entry = device.table + 16 * (device.vectors - 1);
    device.function.enable_msix();
    for address in [0, 0xfee0_0000, 0xffff_fffc, 0xffff_ffff_ffff_fffc] {
        // Fixed delivery only: other kinds would stop or reset the guest itself.
        for data in [0, 0xff] {
            mmio::write(entry, Width::Eight, address);
            mmio::write(entry + 8, Width::Eight, data);
            disk.works()?;
            mmio::write(entry + 12, Width::Four, 1);
            disk.works()?;
        }
    }
    device.function.silence();
    device.runs()
}

/// 3.1.1 and 2.2.1: the device does not go on with features that it has not offered, or without VERSION_1.
fn features_not_offered(stage: &mut Stage) -> Outcome {
    const GREETED: u64 = status::ACKNOWLEDGE | status::DRIVER;
    let driver = &stage.disk.driver;
    for features in [0, VERSION_1 | !driver.offered(), u64::MAX] {
        driver.greet()?;
        driver.take(features);
        driver.device.put(STATUS, GREETED | status::FEATURES_OK);
        is("the status", driver.device.get(STATUS), GREETED)?;
    }
    Ok(())
}

/// 3.1.1: features are not changed behind FEATURES_OK.
fn features_late(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let before = disk.driver.device.get(DRIVER_FEATURE);
    disk.driver.take(u64::MAX);
    let after = disk.driver.device.get(DRIVER_FEATURE);
    is("the driver's features", after, before)?;
    disk.works()?;
    disk.driver.device.runs()
}

/// 3.1.1: DRIVER_OK comes behind FEATURES_OK.
fn without_features_ok(stage: &mut Stage) -> Outcome {
    const GREETED: u64 = status::ACKNOWLEDGE | status::DRIVER;
    let driver = &mut stage.disk.driver;
    driver.greet()?;
    driver.lay_out();
    driver.enable();
    driver.device.put(STATUS, GREETED | status::DRIVER_OK);
    is("the status", driver.device.get(STATUS), GREETED)
}

/// 2.1.1: the driver clears no bit but by a reset, and does not set DEVICE_NEEDS_RESET.
fn status_taken_back(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    for value in [status::ACKNOWLEDGE, status::NEEDS_RESET, 0x30] {
        disk.driver.device.put(STATUS, value);
        disk.driver.device.runs()?;
    }
    disk.works()
}

/// 3.1.1: the driver does not kick before DRIVER_OK. What was made available by then is served nevertheless.
fn kick_before_driver_ok(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.device.reset()?;
    disk.driver.kick();
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    disk.driver.enable();
    disk.prepare_known();
    disk.driver.ring.offer(0);
    disk.driver.kick();
    is("the device's index", disk.driver.ring.used_index(), 0u64)?;
    disk.driver.go();
    disk.finish_known()?;
    disk.driver.device.runs()
}
