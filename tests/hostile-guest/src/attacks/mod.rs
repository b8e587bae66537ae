//! What is done wrong: each attack breaks a rule of virtio 1.2, whose clause stands beside it, and looks at what the device says.
//!
//! - [`layout`]: rings that cannot be where, or as large as, the driver says;
//! - [`chains`]: descriptors that contradict themselves; [`indirect`]: tables of descriptors that do;
//! - [`heads`]: the ring of available heads;
//! - [`requests`]: what is asked of the disk;
//! - [`registers`]: writes at the wrong time, selectors and vectors out of range; [`accesses`]: the wrong sizes and places;
//! - [`randomness`]: the worst of these, done to another device;
//! - [`balloon`]: what is not the guest's to give;
//! - [`console`]: queues that are used the wrong way round;
//! - [`card`] and [`streams`]: what goes through the network card and through vsock;
//! - [`plugged`]: memory that is not the guest's;
//! - [`slots`] and [`processors`]: letting go of devices and of processors.

mod accesses;
mod balloon;
mod card;
mod chains;
mod console;
mod heads;
mod indirect;
mod layout;
mod plugged;
mod processors;
mod randomness;
mod registers;
mod requests;
pub mod slots;
mod streams;

use crate::disk::{self, Disk};
use crate::gate::Target;
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::stage::Stage;

/// One way to do harm.
pub struct Attack {
    /// What the story calls it.
    pub name: &'static str,
    /// The type of the device that it is done to.
    pub on: u16,
    /// Does it, and says whether the device was right.
    pub run: fn(&mut Stage) -> Outcome,
}

/// 2.4.1: a device that is reset touches no memory any more. Of one that just was, these `len` bytes from `place` on were; `used` says how
/// far its indices have come.
fn touches_no_more<const N: usize>(
    stage: &mut Stage,
    (place, len): (u64, u64),
    used: impl Fn(&Stage) -> [u16; N],
) -> Outcome {
    const UNTOUCHED: u8 = 0x5a;
    ram::fill(place, len, UNTOUCHED);
    let before = used(stage);
    // As long as another device takes to answer a few times, through the host.
    (0..8).try_for_each(|_| stage.disk.works())?;
    is(
        "whether memory stayed as it was",
        ram::holds(place, len, UNTOUCHED),
        true,
    )?;
    is(
        "whether the device's indices stayed",
        used(stage) == before,
        true,
    )
}

impl Attack {
    /// Whether it is one on this target.
    pub fn is_on(&self, target: Target) -> bool {
        match target {
            Target::Vmm => true,
            Target::Vhost => self.on == crate::card::KIND,
        }
    }

    /// On the disk.
    const fn disk(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Self {
        Attack {
            name,
            on: disk::KIND,
            run,
        }
    }
}

/// All of them, in order.
pub fn all() -> impl Iterator<Item = &'static Attack> {
    [
        layout::ATTACKS,
        chains::ATTACKS,
        indirect::ATTACKS,
        heads::ATTACKS,
        requests::ATTACKS,
        registers::ATTACKS,
        accesses::ATTACKS,
        randomness::ATTACKS,
        balloon::ATTACKS,
        console::ATTACKS,
        card::ATTACKS,
        streams::ATTACKS,
        plugged::ATTACKS,
        slots::ATTACKS,
        processors::ATTACKS,
    ]
    .into_iter()
    .flatten()
}

/// Brings the disk up, lets `spoil` make it a request with head 0, and waits until it asks for a reset.
fn breaks(stage: &mut Stage, spoil: impl FnOnce(&mut Disk, u64)) -> Outcome {
    let end = stage.ram_end;
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    disk.prepare_known();
    spoil(disk, end);
    disk.driver.ring.offer(0);
    disk.driver.kick();
    disk.driver.device.needs_reset()
}
