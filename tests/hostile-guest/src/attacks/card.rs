//! The network card (virtio 1.2, 5.1.6): packets that are none, headers that lie, commands that mean nothing, and a flood from the host
//! that finds no room.

use super::{Attack, touches_no_more};
use crate::card::{self, Card, FRAME, HEADER_LEN, ROOM};
use crate::device::QUEUE_DRIVER;
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;

pub const ATTACKS: &[Attack] = &[
    attack("net-flood-without-buffers", flood_without_buffers),
    attack("net-flood-into-tiny-buffers", flood_into_tiny_buffers),
    attack("net-buffer-shorter-than-a-header", short_buffer),
    attack("net-buffer-not-writable", buffer_not_writable),
    attack("net-buffer-outside-ram", buffer_outside_ram),
    attack("net-packet-of-zero-length", of_zero_length),
    attack("net-packet-without-frame", without_frame),
    attack("net-packet-oversized", oversized),
    attack("net-header-malformed", header_malformed),
    attack("net-chain-cycle", chain_cycle),
    attack("net-available-index-jumps-ahead", index_jumps_ahead),
    attack("net-control-garbage", control_garbage),
    attack("net-control-without-room", control_without_room),
    attack("net-queue-left-out", queue_left_out),
    attack("net-ring-outside-ram", ring_outside_ram),
    attack("net-reset-in-flight", reset_in_flight),
];

const fn attack(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Attack {
    Attack {
        name,
        on: card::KIND,
        run,
    }
}

/// 5.1.6.3: the driver should keep buffers there. The host sends on; what finds no room is lost, and the next one that has room comes.
fn flood_without_buffers(stage: &mut Stage) -> Outcome {
    stage.card.bring_up()?;
    (0..64).try_for_each(|_| stage.disk.works())?;
    stage.card.receive.device.runs()?;
    (0..8).try_for_each(|_| stage.card.receives())
}

/// 5.1.6.3.1: a buffer has room for a header. These have for nothing else, so a packet takes many of them.
fn flood_into_tiny_buffers(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    let ring = &mut card.receive.ring;
    for head in 0..SIZE {
        let at = ring.buffers() + u64::from(head) * 16;
        ring.describe(head, Descriptor::writable(at, HEADER_LEN));
        ring.put(head);
    }
    ring.publish();
    card.receive.kick();
    let first = card.receive.next_answer()?;
    is("the part of a packet", first.len, HEADER_LEN)?;
    (0..8).try_for_each(|_| stage.disk.works())?;
    stage.card.receive.device.runs()
}

/// Gives the card this buffer, and waits until it asks for a reset.
fn refuses_room(card: &mut Card, room: Descriptor) -> Outcome {
    card.bring_up()?;
    card.receive.ring.describe(0, room);
    card.receive.ring.offer(0);
    card.receive.kick();
    card.refuses()
}

/// 5.1.6.3.1: a buffer has room for a header at least.
fn short_buffer(stage: &mut Stage) -> Outcome {
    let at = stage.card.receive.ring.buffers();
    [0, 1, HEADER_LEN - 1]
        .into_iter()
        .try_for_each(|len| refuses_room(&mut stage.card, Descriptor::writable(at, len)))
}

/// 5.1.6.3: the device writes packets to the buffers.
fn buffer_not_writable(stage: &mut Stage) -> Outcome {
    let at = stage.card.receive.ring.buffers();
    refuses_room(&mut stage.card, Descriptor::readable(at, ROOM))
}

/// 2.7.5: buffers are in guest memory.
fn buffer_outside_ram(stage: &mut Stage) -> Outcome {
    let end = stage.ram_end;
    [end, end - 64, 0xc000_0000, 1 << 63]
        .into_iter()
        .try_for_each(|at| refuses_room(&mut stage.card, Descriptor::writable(at, ROOM)))
}

/// 5.1.6.2: a header comes first. There is none, or half of one.
fn of_zero_length(stage: &mut Stage) -> Outcome {
    [0, 1, HEADER_LEN - 1].into_iter().try_for_each(|len| {
        let card = &mut stage.card;
        card.bring_up()?;
        let at = card.transmit.ring.buffers();
        card.transmit
            .ring
            .describe(0, Descriptor::readable(at, len));
        card.transmit.ring.offer(0);
        card.transmit.kick();
        card.refuses()
    })
}

/// 5.1.6.2: a packet follows the header. What no Ethernet carries is dropped.
fn without_frame(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    [0, 1, card::FRAME_HEADER - 1]
        .into_iter()
        .try_for_each(|len| {
            let packet = card.packet([0; 3]);
            card.drops(Descriptor {
                len: HEADER_LEN + len,
                ..packet
            })
        })?;
    card.works()
}

/// 5.1.6.2: no packet is longer than 64 KiB and its headers. These are, in one piece and in as many as the queue has.
fn oversized(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    let packet = card.packet([0; 3]);
    for len in [66_000, 1 << 20] {
        card.drops(Descriptor { len, ..packet })?;
    }
    for index in 0..SIZE {
        let piece = Descriptor {
            len: 1 << 20,
            ..packet
        };
        let last = index + 1 == SIZE;
        let piece = if last { piece } else { piece.then(index + 1) };
        card.transmit.ring.describe(index, piece);
    }
    let first = Descriptor {
        len: 1 << 20,
        ..packet
    };
    card.drops(first.then(1))?;
    card.works()
}

/// 5.1.6.2: flags, the kind of segmentation, and places in the packet. The kernel checks them; what it refuses is dropped.
fn header_malformed(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    // flags, gso_type, hdr_len | gso_size, csum_start | csum_offset, num_buffers
    let headers = [
        [u32::MAX; 3],
        // A checksum that begins behind the end, or ends there.
        [0x0001, 0xffff_0000, 0xffff],
        [0x0001, (FRAME - 1) << 16, 0xffff],
        // Segments of no size, of one byte, of a kind that does not exist.
        [0xffff_0101, 0x0000_0000, 0],
        [0x0036_0101, 0x0022_0001, 0x10],
        [0x0036_7f01, 0x0022_0400, 0x10],
        [0x0036_0401, 0x0022_0400, 0x10],
        // Headers that are longer than the packet.
        [0xffff_0400, 0x0000_0400, 0],
        [0x0000_8000, 0x0000_0001, 0],
    ];
    for header in headers {
        let packet = card.packet(header);
        card.drops(packet)?;
    }
    card.works()
}

/// 2.7.5.2: loops are forbidden, in either direction.
fn chain_cycle(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    let packet = card.packet([0; 3]);
    card.transmit.ring.describe(0, packet.then(1));
    card.transmit.ring.describe(1, packet.then(0));
    card.transmit.ring.offer(0);
    card.transmit.kick();
    card.refuses()?;
    let at = card.receive.ring.buffers();
    refuses_room(card, Descriptor::writable(at, ROOM).then(0))
}

/// 2.7.13.3: the index goes up by as many heads as were added, and there are no more than the queue has.
fn index_jumps_ahead(stage: &mut Stage) -> Outcome {
    for transmits in [true, false] {
        let card = &mut stage.card;
        card.bring_up()?;
        let driver = if transmits {
            &mut card.transmit
        } else {
            &mut card.receive
        };
        driver.ring.publish_index(SIZE + 1);
        driver.kick();
        card.refuses()?;
    }
    Ok(())
}

/// VIRTIO_NET_ERR
const ERROR: u8 = 1;

/// 5.1.6.5: a class, a command, what belongs to it, and an answer. None of these is a command with an effect.
fn control_garbage(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    let at = card.control.ring.buffers();
    let answer = at + 0x1_0000;
    let commands: [(u32, u32); 8] = [
        (0, 1),
        (0x0000_0004, 2),
        // As many pairs as: none, two (which were not agreed upon), all that 16 bits can say.
        (0x0000_0004, 4),
        (0x0002_0004, 4),
        (0xffff_0004, 4),
        (0x0001_0104, 4),
        (u32::MAX, 4),
        (0x0001_0004, 0x1_0000),
    ];
    for (command, len) in commands {
        ram::store(at, command);
        ram::store(answer, 0xaau8);
        let ring = &mut card.control.ring;
        ring.describe(0, Descriptor::readable(at, len).then(1));
        ring.describe(1, Descriptor::writable(answer, 1));
        let used = card.control.ask(0)?;
        is("the number of bytes answered", used.len, 1u64)?;
        is("the answer", ram::load::<u8>(answer), ERROR)?;
        card.control.device.runs()?;
    }
    card.works()
}

/// 5.1.6.5: the answer is a byte that the device writes.
fn control_without_room(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    let at = card.control.ring.buffers();
    ram::store(at, 0x0001_0004u32);
    card.control.ring.describe(0, Descriptor::readable(at, 4));
    card.control.ring.offer(0);
    card.control.kick();
    card.control.device.needs_reset()
}

/// 3.1.1: the driver sets its queues up before DRIVER_OK. A card receives and transmits.
fn queue_left_out(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    for left_out in [false, true] {
        card.receive.negotiate()?;
        let one = if left_out {
            &mut card.receive
        } else {
            &mut card.transmit
        };
        one.lay_out();
        one.enable();
        one.go();
        one.device.needs_reset()?;
    }
    Ok(())
}

/// 2.7: each part of each queue is in guest memory.
fn ring_outside_ram(stage: &mut Stage) -> Outcome {
    let end = stage.ram_end;
    let card = &mut stage.card;
    for index in 0..3 {
        card.receive.negotiate()?;
        for (at, driver) in [&mut card.receive, &mut card.transmit, &mut card.control]
            .into_iter()
            .enumerate()
        {
            driver.lay_out();
            if at == index {
                driver.device.put_address(QUEUE_DRIVER, end);
            }
            driver.enable();
        }
        card.receive.go();
        card.receive.device.needs_reset()?;
    }
    Ok(())
}

/// 2.4.1: a device that is reset touches no memory any more. Packets come and go when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    let card = &mut stage.card;
    card.bring_up()?;
    let packet = card.packet([0; 3]);
    for head in 0..SIZE {
        let ring = &mut card.receive.ring;
        let at = ring.buffers() + u64::from(head) * u64::from(ROOM);
        ring.describe(head, Descriptor::writable(at, ROOM));
        ring.put(head);
        card.transmit.ring.describe(head, packet);
        card.transmit.ring.put(head);
    }
    for driver in [&card.receive, &card.transmit] {
        driver.ring.publish();
        driver.kick();
    }
    card.receive.device.reset()?;
    let len = u64::from(SIZE) * u64::from(ROOM);
    let place = card.receive.ring.buffers();
    touches_no_more(stage, (place, len), |stage| {
        let card = &stage.card;
        [&card.receive, &card.transmit].map(|driver| driver.ring.used_index())
    })
}
