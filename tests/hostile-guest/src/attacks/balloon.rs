//! What is given to the balloon without being the guest's to give, and lists that are none (virtio 1.2, 5.5.6).

use super::Attack;
use crate::balloon::{self, PAGE, PAGES, data, fill, stayed, write_page};
use crate::outcome::{Outcome, is};
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    attack("balloon-page-outside-ram", page_outside_ram),
    attack("balloon-list-of-odd-size", list_of_odd_size),
    attack("balloon-list-oversized", list_oversized),
    attack("balloon-list-of-zero-length", list_of_zero_length),
    attack("balloon-list-not-readable", list_not_readable),
    attack("balloon-report-outside-ram", report_outside_ram),
    attack("balloon-report-of-zero-length", report_of_zero_length),
    attack("balloon-report-of-half-a-page", report_of_half_a_page),
    attack("balloon-report-of-the-rings", report_of_the_rings),
    attack("balloon-reset-in-flight", reset_in_flight),
];

const fn attack(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Attack {
    Attack {
        name,
        on: balloon::KIND,
        run,
    }
}

/// Where no RAM is: behind its end, in the hole, and at the end of all addresses that a list can say.
fn places_outside(ram_end: u64) -> [u64; 3] {
    [ram_end, 0xc000_0000, u64::from(u32::MAX) * PAGE]
}

/// 5.5.6.1: pages are guest memory. The good one before stays, for the list is looked at as a whole.
fn page_outside_ram(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.balloon.inflate;
    places_outside(stage.ram_end)
        .into_iter()
        .try_for_each(|at| {
            driver.bring_up()?;
            let ring = &mut driver.ring;
            fill(ring);
            write_page(ring, 0, data(ring));
            write_page(ring, 1, at);
            ring.describe(0, Descriptor::readable(ring.buffers(), 8));
            ring.offer(0);
            driver.kick();
            driver.device.needs_reset()?;
            stayed(&driver.ring, 0, PAGES)
        })
}

/// Gives it a list of so many bytes, and waits until it asks for a reset. Nothing is given away.
fn refuses_lists(stage: &mut Stage, sizes: &[u32]) -> Outcome {
    let driver = &mut stage.balloon.inflate;
    sizes.iter().try_for_each(|size| {
        driver.bring_up()?;
        let ring = &mut driver.ring;
        fill(ring);
        (0..=u64::from(size / 4)).for_each(|index| write_page(ring, index, data(ring)));
        ring.describe(0, Descriptor::readable(ring.buffers(), *size));
        ring.offer(0);
        driver.kick();
        driver.device.needs_reset()?;
        stayed(&driver.ring, 0, PAGES)
    })
}

/// 5.5.6: a list has 4 bytes for each page.
fn list_of_odd_size(stage: &mut Stage) -> Outcome {
    refuses_lists(stage, &[1, 2, 3, 5, 4095])
}

/// No driver has lists of more than a few thousand pages; the device takes 4096.
fn list_oversized(stage: &mut Stage) -> Outcome {
    refuses_lists(stage, &[(16 << 10) + 4, 1 << 20])
}

/// 2.7.5: a buffer has a length.
fn list_of_zero_length(stage: &mut Stage) -> Outcome {
    refuses_lists(stage, &[0])
}

/// 5.5.6: the driver tells, and the device reads.
fn list_not_readable(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.balloon.inflate;
    driver.bring_up()?;
    let ring = &mut driver.ring;
    ring.describe(0, Descriptor::writable(ring.buffers(), 4));
    ring.offer(0);
    driver.kick();
    driver.device.needs_reset()
}

/// Reports a good page and this range, and waits until the device asks for a reset. Nothing is given away.
fn refuses_reports(stage: &mut Stage, ranges: &[(u64, u32)]) -> Outcome {
    let driver = &mut stage.balloon.reports;
    ranges.iter().try_for_each(|(at, len)| {
        driver.bring_up()?;
        let ring = &mut driver.ring;
        fill(ring);
        let good = Descriptor::writable(data(ring), PAGE as u32);
        ring.describe(0, good.then(1));
        ring.describe(1, Descriptor::writable(*at, *len));
        ring.offer(0);
        driver.kick();
        driver.device.needs_reset()?;
        stayed(&driver.ring, 0, PAGES)
    })
}

/// 5.5.6.7: what is reported is guest memory.
fn report_outside_ram(stage: &mut Stage) -> Outcome {
    let end = stage.ram_end;
    let page = PAGE as u32;
    refuses_reports(
        stage,
        &[
            (end, page),
            (end - PAGE, 2 * page),
            (0xc000_0000, page),
            (0u64.wrapping_sub(PAGE), page),
            (0, u32::MAX),
        ],
    )
}

/// 2.7.5: a buffer has a length.
fn report_of_zero_length(stage: &mut Stage) -> Outcome {
    let page = data(&stage.balloon.reports.ring);
    refuses_reports(stage, &[(page, 0)])
}

/// A page goes as a whole or stays: nobody said that the rest of it is free.
fn report_of_half_a_page(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.balloon.reports;
    driver.bring_up()?;
    let half = PAGE as u32 / 2;
    let ring = &driver.ring;
    fill(ring);
    // The end of one page and the beginning of the next.
    let across = Descriptor::writable(data(ring) + PAGE / 2, PAGE as u32);
    ring.describe(0, Descriptor::writable(data(ring), half).then(1));
    ring.describe(1, across);
    let used = driver.ask(0)?;
    is("the head given back", used.id, 0u64)?;
    driver.device.runs()?;
    stayed(&driver.ring, 0, PAGES)
}

/// The guest gives away what it talks to the device by, which is its own affair: the device says so or does nothing any more, and works
/// after a reset.
fn report_of_the_rings(stage: &mut Stage) -> Outcome {
    let driver = &mut stage.balloon.reports;
    driver.bring_up()?;
    let ring = &mut driver.ring;
    let rings = (ring.buffers() - ring.descriptors()) as u32;
    ring.describe(0, Descriptor::writable(ring.descriptors(), rings));
    ring.offer(0);
    driver.kick();
    (0..8).try_for_each(|_| stage.entropy.works())?;
    stage.balloon.reports.kick();
    (0..8).try_for_each(|_| stage.entropy.works())
}

/// 2.4.1: a device that is reset gives nothing away any more. It has a ring full of long lists when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    const LIST: u64 = 4096;
    let driver = &mut stage.balloon.inflate;
    driver.bring_up()?;
    let ring = &mut driver.ring;
    (0..LIST).for_each(|index| write_page(ring, index, data(ring) + index % PAGES * PAGE));
    for head in 0..SIZE {
        let list = Descriptor::readable(ring.buffers(), 4 * LIST as u32);
        ring.describe(head, list);
        ring.put(head);
    }
    ring.publish();
    driver.kick();
    driver.device.reset()?;
    fill(&driver.ring);
    let used = driver.ring.used_index();
    // As long as another device takes to answer a few times, through the host.
    (0..8).try_for_each(|_| stage.entropy.works())?;
    let ring = &stage.balloon.inflate.ring;
    is("the device's index", ring.used_index(), used)?;
    stayed(ring, 0, PAGES)
}
