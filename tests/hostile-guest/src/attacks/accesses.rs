//! Registers accessed by the wrong sizes and at the wrong places (virtio 1.2, 4.1.3.1), and a BAR that goes where it must not.

use super::Attack;
use crate::device::{
    Device, QUEUE_DESCRIPTORS, QUEUE_ENABLE, QUEUE_REGISTERS, QUEUE_SIZE, QUEUE_VECTOR, Register,
};
use crate::disk::Disk;
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    Attack::disk("odd-access-sizes-of-writes", odd_writes),
    Attack::disk("odd-access-sizes-of-reads", odd_reads),
    Attack::disk("odd-access-sizes-of-kicks", odd_kicks),
    Attack::disk("kick-of-an-absent-queue", absent_kick),
    Attack::disk("configuration-written-over", config_written_over),
    Attack::disk("window-to-nowhere", window_to_nowhere),
    Attack::disk("configuration-space-written-over", space_written_over),
    Attack::disk("bar-on-ram", bar_on_ram),
    Attack::disk("bar-on-a-neighbour", bar_on_a_neighbour),
];

/// The size of a structure in the BAR.
const STRUCTURE: u64 = 0x1000;

/// What the queue's registers read.
fn queue(device: &Device) -> [u64; QUEUE_REGISTERS.len()] {
    QUEUE_REGISTERS.map(|register| device.get(register))
}

/// Nothing of the selected queue has changed.
fn unchanged(device: &Device, before: [u64; QUEUE_REGISTERS.len()]) -> Outcome {
    before
        .into_iter()
        .zip(queue(device))
        .try_for_each(|(before, after)| is("a queue's register", after, before))
}

/// 4.1.3.1: a field is written by an access of its own size, aligned. The queue is laid out and not yet enabled, so that a right write
/// would have an effect.
fn odd_writes(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.negotiate()?;
    disk.driver.lay_out();
    let device = disk.driver.device;
    let before = queue(&device);
    let odd = [
        (QUEUE_SIZE, 0, Width::One),
        (QUEUE_SIZE, 0, Width::Four),
        (QUEUE_SIZE, 0, Width::Eight),
        (QUEUE_SIZE, 1, Width::One),
        (QUEUE_SIZE, 1, Width::Two),
        (QUEUE_VECTOR, 0, Width::One),
        (QUEUE_ENABLE, 0, Width::One),
        (QUEUE_ENABLE, 0, Width::Four),
        (QUEUE_DESCRIPTORS, 0, Width::One),
        (QUEUE_DESCRIPTORS, 0, Width::Two),
        (QUEUE_DESCRIPTORS, 0, Width::Eight),
        (QUEUE_DESCRIPTORS, 2, Width::Four),
        (QUEUE_DESCRIPTORS, 1, Width::Eight),
    ];
    for (Register(at, _), offset, width) in odd {
        mmio::write(device.common + at + offset, width, 0x0101_0101_0001_0001);
        unchanged(&device, before)?;
    }
    disk.driver.enable();
    disk.driver.go();
    // The status, which is one byte, within larger accesses: a reset by one of them would be none that the driver asked for.
    mmio::write(device.common + 0x14, Width::Two, 0);
    mmio::write(device.common + 0x14, Width::Four, 0);
    mmio::write(device.common + 0x10, Width::Eight, 0);
    device.runs()?;
    disk.works()
}

/// 4.1.3.1: reads of every size at every place, also behind what a structure has. What they say does not matter.
fn odd_reads(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let device = disk.driver.device;
    for width in Width::ALL {
        (0..0x40).for_each(|at| {
            mmio::read(device.common + at, width);
        });
        let last = STRUCTURE - width.bytes();
        for place in [
            device.common,
            device.isr,
            device.config,
            device.notify,
            device.table,
        ] {
            // The first, an odd one, the last, and one that begins in this structure and ends in the next.
            for at in [0, 1, last, STRUCTURE - 1] {
                mmio::read(place + at, width);
            }
        }
    }
    device.runs()?;
    disk.works()
}

/// 4.1.5.2: a kick is two bytes, or four. It works by any size, and at an odd place it does no harm.
fn odd_kicks(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let register = disk.driver.kick_at;
    for width in Width::ALL {
        disk.prepare_known();
        disk.driver.ring.offer(0);
        mmio::write(register, width, u64::MAX);
        disk.finish_known()?;
        mmio::write(register + 1, width, u64::MAX);
        mmio::write(register + 3, width, 0);
    }
    disk.driver.device.runs()?;
    disk.works()
}

/// 4.1.5.2: a kick of a queue that does not exist.
fn absent_kick(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let device = disk.driver.device;
    for queue in [64, 1000, STRUCTURE / 4 - 1] {
        for width in Width::ALL {
            mmio::write(device.kick_register(queue), width, queue);
        }
    }
    device.runs()?;
    disk.works()
}

/// 5.2.4: nothing of a disk's configuration can be written, by any size; the ISR status is read-only (4.1.4.5).
fn config_written_over(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let device = disk.driver.device;
    let capacity = disk.capacity();
    for width in Width::ALL {
        for at in [0, 1, 8, 20, 32, 33, 0x3f, 0x40, STRUCTURE - 1] {
            mmio::write(device.config + at, width, u64::MAX);
            mmio::write(device.isr + at, width, u64::MAX);
        }
    }
    is("the capacity", disk.capacity(), capacity)?;
    device.runs()?;
    disk.works()
}

/// 4.1.4.9: the window in configuration space looks at a BAR, by 1, 2 or 4 bytes, at a multiple of that. Here it looks elsewhere.
fn window_to_nowhere(stage: &mut Stage) -> Outcome {
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let (function, at) = (disk.driver.device.function, disk.driver.device.window);
    let look = |bar: u64, offset: u64, len: u64| {
        function.put(at + 4, Width::One, bar);
        function.put(at + 8, Width::Four, offset);
        function.put(at + 12, Width::Four, len);
        for width in [Width::One, Width::Two, Width::Four] {
            for place in [at + 16, at + 17, at + 14] {
                function.get(place, width);
                function.put(place, width, 0);
            }
        }
    };
    for bar in [1, 5, 6, 0xff] {
        look(bar, 0x14, 1);
    }
    for offset in [0x5fff, 0x8000, 0x7fff_ffff, 0xffff_fffc, 0xffff_ffff] {
        for len in [1, 2, 4] {
            look(0, offset, len);
        }
    }
    for len in [0, 3, 5, 8, 0x1000, 0xffff_ffff] {
        look(0, 0x14, len);
    }
    // And nowhere for the next one.
    function.put(at + 12, Width::Four, 0);
    disk.driver.device.runs()?;
    disk.works()
}

/// PCI Local Bus 3.0, 6.1: what is read-only stays, and what is not is the driver's to put right again.
fn space_written_over(stage: &mut Stage) -> Outcome {
    /// The function's and the next one's, which does not exist.
    const SPACES: u64 = 0x2000;
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let Device {
        function, window, ..
    } = disk.driver.device;
    let home = function.bar();
    let id = function.get(0, Width::Four);
    for value in [0, u64::MAX] {
        // The header and the capabilities a byte at a time, all else by leaps and across.
        (0..0x100).for_each(|at| function.put(at, Width::One, value));
        for width in Width::ALL {
            (0..SPACES / 61).for_each(|step| function.put(61 * step, width, value));
        }
    }
    is("vendor and device", function.get(0, Width::Four), id)?;
    function.silence();
    function.put(window + 12, Width::Four, 0);
    function.decode(false);
    function.move_bar(home);
    function.decode(true);
    is("where the BAR is", function.bar(), home)?;
    disk.driver.device.runs()?;
    disk.works()
}

/// Moves the disk's BAR, does something, and moves it back.
fn with_bar_at(disk: &mut Disk, place: u64, then: impl FnOnce() -> Outcome) -> Outcome {
    let function = disk.driver.device.function;
    let home = function.bar();
    function.move_bar(place);
    let seen = then();
    function.decode(false);
    function.move_bar(home);
    function.decode(true);
    seen?;
    is("where the BAR is", function.bar(), home)?;
    disk.driver.device.runs()?;
    disk.works()
}

/// PCI Local Bus 3.0, 6.2.5: a BAR lies where nothing else is. This one is put onto RAM, which stays RAM.
fn bar_on_ram(stage: &mut Stage) -> Outcome {
    const MARK: u64 = 0x1122_3344_5566_7788;
    let disk = &mut stage.disk;
    disk.driver.bring_up()?;
    let place = disk.data() & !0xffff;
    with_bar_at(disk, place, || {
        for at in [0, 0x14, 0x3000, 0x7ff8] {
            ram::store(place + (at & !7), MARK);
            is("what RAM holds", ram::load::<u64>(place + (at & !7)), MARK)?;
        }
        Ok(())
    })
}

/// PCI Local Bus 3.0, 6.2.5: two BARs are not in one place. The one that was there first goes on.
fn bar_on_a_neighbour(stage: &mut Stage) -> Outcome {
    let Stage { disk, entropy, .. } = stage;
    disk.driver.bring_up()?;
    let place = entropy.driver.device.function.bar();
    with_bar_at(disk, place, || entropy.works())
}
