//! The registers of vCPU hotplug, by which a guest lets go of processors (the layout is `vmm/src/devices/cpu_hotplug.rs`): those that are not
//! there, the one that it runs on, any width, any place.

use super::Attack;
use crate::mmio::Width;
use crate::outcome::{Outcome, is};
use crate::ports;
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("vcpu-eject-of-absent-ones", eject_absent),
    Attack::disk("vcpu-eject-of-the-first", eject_first),
    Attack::disk("vcpu-odd-widths", odd_widths),
    Attack::disk("vcpu-registers-without-end", without_end),
];

/// The registers: who is there, what has happened, and whom the guest has let go of.
const REGISTERS: u16 = 0x680;
const PRESENT_LEN: u16 = 32;
const NEXT: u16 = REGISTERS + PRESENT_LEN;
const EJECT: u16 = NEXT + 4;
const END: u16 = EJECT + 4;

/// Ejects some, and wants the first processor to be there and no other, with nothing to say.
fn changes_nothing(stage: &mut Stage, eject: impl FnOnce()) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    eject();
    for at in 0..PRESENT_LEN {
        let present = ports::read(REGISTERS + at, Width::One);
        is("who is there", present, u32::from(at == 0))?;
    }
    is("what has happened", ports::read(NEXT, Width::Four), 0u32)?;
    disk.works()?;
    disk.driver.device.runs()
}

/// There is nobody to let go of.
fn eject_absent(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || {
        (1..=0x1ff).for_each(|id| ports::write_four(EJECT, id));
        (8..32).for_each(|bit| ports::write_four(EJECT, 1 << bit));
        ports::write_four(EJECT, u32::MAX);
    })
}

/// A machine has a processor.
fn eject_first(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || (0..16).for_each(|_| ports::write_four(EJECT, 0)))
}

/// Words of four bytes are written to one place, and nothing else is.
fn odd_widths(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || {
        for at in REGISTERS..END {
            ports::write(at, 0);
            ports::write_two(at, 1);
            ports::write_four(at, u32::MAX);
            ports::read_by_any_width(at);
        }
    })
}

/// Nobody has come and nobody is to go, however often that is asked.
fn without_end(stage: &mut Stage) -> Outcome {
    changes_nothing(stage, || {
        for _ in 0..1000 {
            ports::read(NEXT, Width::Four);
            ports::write_four(EJECT, 0);
        }
    })
}
