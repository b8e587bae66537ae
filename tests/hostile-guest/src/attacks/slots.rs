//! The registers of PCI hotplug, by which a guest lets go of devices (the layout is `vmm/src/devices/pci_hotplug.rs`): what is not there,
//! the host bridge, any width, any place; and at the very end, everything.

use super::Attack;
use crate::mmio::Width;
use crate::outcome::{Outcome, becomes, is};
use crate::pci::{DEVICES, Function};
use crate::ports;
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("hotplug-eject-of-absent-slots", eject_absent),
    Attack::disk("hotplug-eject-of-the-host-bridge", eject_host_bridge),
    Attack::disk("hotplug-odd-widths", odd_widths),
    Attack::disk("hotplug-registers-without-end", without_end),
];

/// The registers: what has come, what is to go, and what the guest has let go of.
const REGISTERS: u16 = 0x640;
const EJECT: u16 = REGISTERS + 8;
const SIZE: u16 = 12;

/// A bit for each device number with a device.
fn present() -> u32 {
    (0..DEVICES)
        .filter(|number| Function::at(*number).is_there())
        .fold(0, |bits, number| bits | 1 << number)
}

/// Ejects them, and wants the same devices to be there.
fn changes_nothing(stage: &mut Stage, eject: impl FnOnce()) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let before = present();
    eject();
    is("which devices are there", present(), before)?;
    disk.works()?;
    disk.driver.device.runs()
}

/// There is nothing to let go of.
fn eject_absent(stage: &mut Stage) -> Outcome {
    let absent = !present();
    changes_nothing(stage, || {
        ports::write_four(EJECT, absent);
        (0..32)
            .filter(|number| absent & 1 << number != 0)
            .for_each(|number| ports::write_four(EJECT, 1 << number));
    })
}

/// Slot 0 is not the guest's to let go of.
fn eject_host_bridge(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || (0..16).for_each(|_| ports::write_four(EJECT, 1)))
}

/// Aligned words of four bytes are written, and nothing else is.
fn odd_widths(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || {
        for at in REGISTERS..REGISTERS + SIZE {
            ports::write(at, 0xff);
            ports::write_two(at, 0xffff);
            if at != EJECT {
                ports::write_four(at, u32::MAX);
            }
            ports::read_by_any_width(at);
        }
    })
}

/// Nothing has come and nothing is to go, however often that is asked.
fn without_end(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || {
        for _ in 0..1000 {
            ports::read(REGISTERS, Width::Four);
            ports::read(REGISTERS + 4, Width::Four);
            ports::write_four(EJECT, 0);
        }
    })
}

/// Lets go of everything at once while all devices work: they are gone, and the host bridge stays.
pub fn eject_everything(stage: &mut Stage) -> Outcome {
    stage.card.bring_up()?;
    stage.card.receives()?;
    stage.streams.works()?;
    stage.disk.driver.bring_up()?;
    stage.disk.prepare_known();
    stage.disk.driver.ring.offer(0);
    stage.disk.driver.kick();
    ports::write_four(EJECT, u32::MAX);
    becomes("which devices are there", 1, || present().into())?;
    ports::write_four(EJECT, u32::MAX);
    // Where they were nobody answers.
    for driver in [
        &stage.disk.driver,
        &stage.entropy.driver,
        &stage.card.receive,
    ] {
        driver.kick();
        let status = driver.device.get(crate::device::STATUS);
        is(
            "the status of a device that is gone",
            status == crate::device::status::RUNNING,
            false,
        )?;
    }
    Ok(())
}
