//! A device behind its PCI function, configured rightly and wrongly.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::test_guest::*;
use crate::devices::virtio::test_driver::{PATIENCE, Random, wait};
use crate::devices::virtio::{
    Active, Device, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1, Interrupt, Kind,
    StartError,
};
use crate::pci::{BarIndex, Function};

#[test]
fn a_driver_that_does_as_it_should_has_a_working_device() {
    let mut guest = Guest::new();
    guest.put(FEATURE_SELECT, 4, 0);
    let low = guest.get(FEATURE, 4);
    assert_eq!(low, F_RING_INDIRECT_DESC | F_RING_EVENT_IDX);
    guest.put(FEATURE_SELECT, 4, 1);
    assert_eq!(guest.get(FEATURE, 4) << 32, F_VERSION_1);
    guest.put(FEATURE_SELECT, 4, 2);
    assert_eq!(guest.get(FEATURE, 4), 0);
    assert_eq!(guest.get(QUEUE_COUNT, 2), 1);
    guest.start();
    assert_eq!(guest.status(), RUNNING);
    for _ in 0..40 {
        guest.works();
    }
    // And again after a reset.
    guest.put(STATUS, 1, 0);
    assert_eq!(guest.status(), 0);
    guest.new_queue();
    guest.start();
    guest.works();
}

#[test]
fn an_interrupt_waits_for_its_vector_to_be_unmasked() {
    let mut guest = Guest::new();
    guest.start();
    guest.works();
    // Vector 1 is the queue's: it is masked, so it is pending, and not attached.
    assert!(guest.wires.irqs.lock().unwrap().is_empty());
    let end = Instant::now() + PATIENCE;
    while guest.get(PENDING, 1) != 0b10 {
        assert!(Instant::now() < end, "not pending");
    }
    let mut control = [0; 4];
    guest.function.read_config(0x40, &mut control);
    assert_eq!(control[0], 0x11, "the MSI-X capability comes first");
    guest.function.write_config(0x42, &[control[2], 0x80]);
    for (word, value) in [(4, 0xfee0_0000), (5, 0), (6, 0x41), (7, 0)] {
        guest.put(TABLE + 4 * word, 4, value);
    }
    assert_eq!(guest.wires.irqs.lock().unwrap().len(), 1);
    assert_eq!(guest.get(PENDING, 1), 0);
}

#[test]
fn features_that_were_not_offered_or_too_few_are_refused() {
    let mut guest = Guest::new();
    for features in [
        0,
        F_RING_EVENT_IDX,
        GOOD | 1,
        GOOD | 1 << 33,
        GOOD | 1 << 63,
        u64::MAX,
    ] {
        guest.negotiate(features);
        assert_eq!(guest.status(), DRIVER, "{features:#x}");
        // Nor can it be skipped.
        guest.lay_out();
        guest.put(STATUS, 1, DRIVER | DRIVER_OK);
        assert_eq!(guest.status(), DRIVER);
    }
    guest.negotiate(GOOD);
    assert_eq!(guest.status(), DRIVER | FEATURES_OK);
    // What was agreed upon stays.
    guest.take_features(u64::MAX);
    guest.put(DRIVER_FEATURE_SELECT, 4, 1);
    assert_eq!(guest.get(DRIVER_FEATURE, 4), GOOD >> 32);
    guest.put(DRIVER_FEATURE_SELECT, 4, 2);
    guest.put(DRIVER_FEATURE, 4, 7);
    assert_eq!(guest.get(DRIVER_FEATURE, 4), 0);
}

#[test]
fn a_queue_that_is_enabled_or_running_does_not_change() {
    let fields = [
        (QUEUE_SIZE, 2),
        (QUEUE_VECTOR, 2),
        (QUEUE_ENABLE, 2),
        (QUEUE_DESCRIPTORS, 4),
        (QUEUE_DESCRIPTORS + 4, 4),
        (QUEUE_DRIVER, 4),
        (QUEUE_DRIVER + 4, 4),
        (QUEUE_DEVICE, 4),
        (QUEUE_DEVICE + 4, 4),
    ];
    let mut guest = Guest::new();
    for running in [false, true] {
        guest.negotiate(GOOD);
        guest.lay_out();
        if running {
            guest.put(STATUS, 1, RUNNING);
        }
        for (at, len) in fields {
            let before = guest.get(at, len);
            for value in [0, 1, 0x4000, u64::MAX] {
                guest.put(at, len, value);
                assert_eq!(guest.get(at, len), before, "{at:#x}");
            }
        }
    }
    guest.works();
}

#[test]
fn a_queue_that_was_not_enabled_is_not_changed_while_the_device_runs() {
    let mut guest = Guest::new();
    guest.negotiate(GOOD);
    guest.put(STATUS, 1, RUNNING);
    assert_eq!(guest.status(), RUNNING | NEEDS_RESET, "it needs its queue");
    guest.lay_out();
    assert_eq!(guest.get(QUEUE_ENABLE, 2), 0);
    assert_eq!(guest.get(QUEUE_SIZE, 2), 64);
}

#[test]
fn rings_that_cannot_be_ask_for_a_reset_and_after_it_all_is_well() {
    let mut guest = Guest::new();
    let bad: [(u64, usize, u64); 7] = [
        (QUEUE_SIZE, 2, 0),
        (QUEUE_SIZE, 2, 3),
        (QUEUE_SIZE, 2, 128),
        (QUEUE_SIZE, 2, 0x8000),
        (QUEUE_DESCRIPTORS, 4, 0x10_0000),
        (QUEUE_DRIVER + 4, 4, 0xffff_ffff),
        (QUEUE_DEVICE, 4, 0x1002),
    ];
    for (at, len, value) in bad {
        guest.negotiate(GOOD);
        guest.put(CONFIG_VECTOR, 2, 0);
        let layout = guest.queue.layout;
        guest.put(QUEUE_DESCRIPTORS, 4, layout.descriptors.0);
        guest.put(QUEUE_DRIVER, 4, layout.driver.0);
        guest.put(QUEUE_DEVICE, 4, layout.device.0);
        guest.put(QUEUE_SIZE, 2, 16);
        guest.put(at, len, value);
        guest.put(QUEUE_ENABLE, 2, 1);
        guest.put(STATUS, 1, RUNNING);
        assert_eq!(guest.status(), RUNNING | NEEDS_RESET, "{at:#x} {value:#x}");
        assert_eq!(guest.get(PENDING, 1) & 1, 1, "the driver is told");
        // Nothing but a reset helps.
        guest.put(STATUS, 1, RUNNING);
        assert_eq!(guest.status(), RUNNING | NEEDS_RESET);
    }
    guest.start();
    assert_eq!(guest.status(), RUNNING);
    guest.works();
}

#[test]
fn status_bits_are_only_added_and_ours_is_not_the_driver_s() {
    let mut guest = Guest::new();
    guest.put(STATUS, 1, DRIVER);
    guest.put(STATUS, 1, 1);
    assert_eq!(guest.status(), DRIVER);
    guest.put(STATUS, 1, NEEDS_RESET | 16 | 32);
    assert_eq!(guest.status(), DRIVER);
    guest.put(STATUS, 1, 128);
    assert_eq!(guest.status(), DRIVER | 128);
    // Accesses of another size are none.
    guest.put(STATUS, 2, 0);
    guest.put(STATUS, 4, 0);
    assert_eq!(guest.status(), DRIVER | 128);
    guest.put(STATUS, 1, 0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_reset_forgets_everything() {
    let mut guest = Guest::new();
    guest.start();
    guest.put(STATUS, 1, 0);
    for at in [
        DRIVER_FEATURE,
        QUEUE_ENABLE,
        QUEUE_DESCRIPTORS,
        QUEUE_DRIVER,
        QUEUE_DEVICE,
    ] {
        assert_eq!(guest.get(at, 2), 0, "{at:#x}");
    }
    assert_eq!(guest.get(QUEUE_SIZE, 2), 64);
    assert_eq!(guest.get(QUEUE_VECTOR, 2), 0xffff);
    assert_eq!(guest.get(CONFIG_VECTOR, 2), 0xffff);
    // The device lets go of the rings.
    guest.queue.add(&[(0x8000, 16, true)]).unwrap();
    guest.put(NOTIFY, 2, 0);
    assert!(!wait(&guest.queue.interrupt, Duration::from_millis(50)));
    assert_eq!(guest.queue.used_index(), 0);
}

#[test]
fn queues_and_vectors_that_do_not_exist() {
    let mut guest = Guest::new();
    guest.negotiate(GOOD);
    for queue in [1, 2, 0x7fff, 0xffff] {
        guest.put(QUEUE_SELECT, 2, queue);
        assert_eq!(guest.get(QUEUE_SIZE, 2), 0);
        guest.put(QUEUE_SIZE, 2, 16);
        guest.put(QUEUE_ENABLE, 2, 1);
        assert_eq!(guest.get(QUEUE_SIZE, 2), 0);
        assert_eq!(guest.get(QUEUE_ENABLE, 2), 0);
        assert_eq!(guest.get(QUEUE_NOTIFY, 2), queue);
        guest.put(NOTIFY + 4 * queue.min(0x3ff), 4, 0);
    }
    guest.put(QUEUE_SELECT, 2, 0);
    for vector in [2, 100, 0xfffe, 0xffff] {
        guest.put(QUEUE_VECTOR, 2, vector);
        assert_eq!(guest.get(QUEUE_VECTOR, 2), 0xffff);
        guest.put(CONFIG_VECTOR, 2, vector);
        assert_eq!(guest.get(CONFIG_VECTOR, 2), 0xffff);
    }
    assert_eq!(guest.get(DEVICE, 8), 0, "virtio-rng has no configuration");
}

/// A device whose configuration space is one byte, which changes when the driver writes it.
struct Changing {
    value: u8,
    changed: Option<Interrupt>,
}

impl Device for Changing {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Owned(vec![self.value])
    }

    fn config_generation(&self) -> u8 {
        self.value
    }

    fn write_config(&mut self, _offset: usize, data: &[u8]) {
        self.value = data[0];
        if let Some(changed) = &self.changed {
            changed.trigger();
        }
    }

    fn start(&mut self, active: Active) -> Result<(), StartError> {
        self.changed = Some(active.config_changed);
        Ok(())
    }

    fn stop(&mut self) {
        self.changed = None;
    }
}

#[test]
fn a_configuration_space_that_changes_has_another_generation_and_interrupts() {
    let mut guest = Guest::with(Box::new(Changing {
        value: 1,
        changed: None,
    }));
    guest.negotiate(F_VERSION_1);
    guest.put(CONFIG_VECTOR, 2, 0);
    guest.lay_out();
    guest.put(STATUS, 1, RUNNING);
    assert_eq!(guest.get(CONFIG_GENERATION, 1), 1);
    assert_eq!(guest.get(PENDING, 8) & 1, 0);
    guest.put(DEVICE, 1, 7);
    assert_eq!(guest.get(DEVICE, 4), 7);
    assert_eq!(guest.get(CONFIG_GENERATION, 1), 7);
    assert_eq!(guest.get(PENDING, 8) & 1, 1, "the interrupt");
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar_and_nothing_else() {
    let mut guest = Guest::new();
    // Find it: a vendor's capability of type 5.
    let mut at = 0x34;
    let mut byte = [0];
    let window = loop {
        guest.function.read_config(at, &mut byte);
        at = usize::from(byte[0]);
        assert_ne!(at, 0, "no window");
        let mut head = [0; 4];
        guest.function.read_config(at, &mut head);
        if head[0] == 9 && head[3] == 5 {
            break at;
        }
        at += 1;
    };
    let mut look = |bar: u8, offset: u32, length: u32| {
        guest.function.write_config(window + 4, &[bar]);
        guest
            .function
            .write_config(window + 8, &offset.to_le_bytes());
        guest
            .function
            .write_config(window + 12, &length.to_le_bytes());
        let mut data = [0xee; 4];
        guest.function.read_config(window + 16, &mut data);
        data
    };
    assert_eq!(look(0, QUEUE_SIZE as u32, 2)[..2], [64, 0]);
    // Elsewhere there is what was written there: nothing.
    for (bar, offset, length) in [
        (1, 0x18, 2),
        (0, 0x6000, 4),
        (0, 0xffff_ffff, 4),
        (0, 0x18, 0),
        (0, 0x18, 3),
        (0, 0x18, 8),
        (0, 0x18, 0xffff_ffff),
    ] {
        assert_eq!(
            look(bar, offset, length),
            [0; 4],
            "{bar} {offset:#x} {length}"
        );
    }
    look(0, STATUS as u32, 1);
    guest.function.write_config(window + 16, &[1]);
    assert_eq!(guest.status(), 1);
}

#[test]
fn anything_anywhere() {
    let mut random = Random::new(3);
    let mut guest = Guest::new();
    for round in 0..3_000 {
        let len = [1, 2, 4, 8, 3, 0, 16][random.below(7) as usize];
        let area =
            [0, 0, 0, 0x1000, DEVICE, NOTIFY, TABLE, PENDING, 0x7ff0][random.below(9) as usize];
        let at = match random.below(20) {
            0 => random.next(),
            1 => area + random.below(0x1000),
            _ => area + random.below(0x40),
        };
        let mut data = [0; 16];
        data[..8].copy_from_slice(&random.next().to_le_bytes());
        if random.one_in(2) {
            data[1..].fill(0);
        }
        let config = random.below(0x120) as usize;
        match random.below(8) {
            0 => guest.function.read(BarIndex::FIRST, at, &mut data[..len]),
            1 => guest.function.read_config(config, &mut data[..len.min(4)]),
            2 => guest.function.write_config(config, &data[..len.min(4)]),
            _ => guest.function.write(BarIndex::FIRST, at, &data[..len]),
        }
        // Most of the time the device gets as far as running, with whatever was said before.
        if round % 50 == 0 {
            guest.start();
        }
    }
    guest.put(STATUS, 1, 0);
    guest.new_queue();
    guest.start();
    guest.works();
}
