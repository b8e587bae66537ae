//! Streams (virtio 1.2, 5.10.6): credit that is a lie, data without credit, lengths, operations and types that do not exist, and floods.

use super::{Attack, touches_no_more};
use crate::outcome::{Outcome, is};
use crate::ring::{Descriptor, SIZE};
use crate::stage::Stage;
use crate::streams::{
    self, BUSY, DEAF, HEADER_LEN, HOST, NOBODY, OWN, Packet, REQUEST, RESPONSE, ROOM, RST, RW,
    SHUTDOWN,
};

pub const ATTACKS: &[Attack] = &[
    attack("vsock-credit-without-end", credit_without_end),
    attack("vsock-credit-that-goes-back", credit_goes_back),
    attack("vsock-data-beyond-credit", data_beyond_credit),
    attack("vsock-data-at-once-beyond-credit", data_at_once),
    attack("vsock-length-beyond-the-buffer", length_beyond),
    attack("vsock-length-below-the-buffer", length_below),
    attack("vsock-packet-shorter-than-a-header", short_packet),
    attack("vsock-room-without-data", room_without_data),
    attack("vsock-room-not-writable", room_not_writable),
    attack("vsock-room-outside-ram", room_outside_ram),
    attack("vsock-unknown-operations", unknown_operations),
    attack("vsock-unknown-types", unknown_types),
    attack("vsock-from-others-and-to-others", others),
    attack("vsock-of-no-connection", of_no_connection),
    attack("vsock-request-twice", request_twice),
    attack("vsock-data-behind-the-end", data_behind_the_end),
    attack("vsock-flood-of-requests", flood_of_requests),
    attack("vsock-flood-of-connections", flood_of_connections),
    attack("vsock-reset-in-flight", reset_in_flight),
];

const fn attack(name: &'static str, run: fn(&mut Stage) -> Outcome) -> Attack {
    Attack {
        name,
        on: streams::KIND,
        run,
    }
}

/// 5.10.6.3: how much the guest can hold. It says all that a number can, and has room for 32 packets: the host sends as much, and waits.
fn credit_without_end(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    let request = Packet {
        alloc: u32::MAX,
        ..streams.to(BUSY, REQUEST)
    };
    streams.say(request)?;
    streams.fills(32)?;
    (0..16).try_for_each(|_| stage.disk.works())?;
    stage.streams.receive.device.runs()
}

/// 5.10.6.3: what was passed on is counted, and less than what was sent. This is more, or goes back, while data flow.
fn credit_goes_back(stage: &mut Stage) -> Outcome {
    /// VIRTIO_VSOCK_OP_CREDIT_UPDATE, _CREDIT_REQUEST
    const UPDATE: u16 = 6;
    const ASK: u16 = 7;
    let streams = &mut stage.streams;
    streams.bring_up()?;
    streams.connect(streams.to(BUSY, REQUEST))?;
    for (alloc, forwarded) in [
        (0, 0),
        (1, u32::MAX),
        (u32::MAX, 1 << 31),
        (u32::MAX, u32::MAX),
        (0, 1 << 31),
        (1 << 16, 0),
    ] {
        for op in [UPDATE, ASK] {
            let lie = Packet {
                alloc,
                forwarded,
                ..streams.to(BUSY, op)
            };
            streams.say(lie)?;
        }
        // It was asked, so it says something.
        streams.hear()?;
    }
    streams.send.device.runs()
}

/// 5.10.6.3.1: the driver sends no more than the device has room for. The program on the host takes nothing, and the stream ends before
/// the VMM holds more than it promised.
fn data_beyond_credit(stage: &mut Stage) -> Outcome {
    const AT_ONCE: u32 = 64 << 10;
    let streams = &mut stage.streams;
    streams.bring_up()?;
    streams.connect(streams.to(DEAF, REQUEST))?;
    // What the host's socket and the VMM hold together is far less than this.
    for _ in 0..64 {
        let data = Packet {
            len: AT_ONCE,
            ..streams.to(DEAF, RW)
        };
        streams.say(data)?;
    }
    streams.hear_of(RST)?;
    streams.send.device.runs()
}

/// The same by one packet of 3 MiB.
fn data_at_once(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    streams.connect(streams.to(DEAF, REQUEST))?;
    let data = Packet {
        len: 3 << 20,
        ..streams.to(DEAF, RW)
    };
    streams.is_refused(data)
}

/// 5.10.6: `len` bytes follow the header, in the buffer.
fn length_beyond(stage: &mut Stage) -> Outcome {
    [1, 4096, 0x7fff_ffff, u32::MAX - 44, u32::MAX]
        .into_iter()
        .try_for_each(|len| {
            let streams = &mut stage.streams;
            streams.bring_up()?;
            streams.connect(streams.to(BUSY, REQUEST))?;
            let data = Packet {
                len,
                ..streams.to(BUSY, RW)
            };
            streams.breaks(data, HEADER_LEN)
        })
}

/// 5.10.6: what follows behind `len` bytes is nothing.
fn length_below(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    streams.connect(streams.to(BUSY, REQUEST))?;
    for len in [0, 1, 100] {
        let data = Packet {
            len,
            ..streams.to(BUSY, RW)
        };
        streams.say_in(data, HEADER_LEN + 4096)?;
        streams.send.device.runs()?;
    }
    Ok(())
}

/// 5.10.6: a packet begins with a header.
fn short_packet(stage: &mut Stage) -> Outcome {
    [0, 1, HEADER_LEN - 1].into_iter().try_for_each(|len| {
        let streams = &mut stage.streams;
        streams.bring_up()?;
        streams.breaks(streams.to(NOBODY, REQUEST), len)
    })
}

/// Gives the device this room, has it want to say something, and waits until it asks for a reset.
fn refuses_room(stage: &mut Stage, room: Descriptor) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up_without_room()?;
    streams.receive.ring.describe(0, room);
    streams.receive.ring.offer(0);
    streams.receive.kick();
    streams.breaks(streams.to(NOBODY, REQUEST), HEADER_LEN)
}

/// 5.10.6: room for a header, and for something behind it.
fn room_without_data(stage: &mut Stage) -> Outcome {
    let at = stage.streams.receive.ring.buffers();
    [0, 1, HEADER_LEN - 1, HEADER_LEN]
        .into_iter()
        .try_for_each(|len| refuses_room(stage, Descriptor::writable(at, len)))
}

/// 5.10.2: the device writes to the buffers of this queue.
fn room_not_writable(stage: &mut Stage) -> Outcome {
    let at = stage.streams.receive.ring.buffers();
    refuses_room(stage, Descriptor::readable(at, ROOM))
}

/// 2.7.5: buffers are in guest memory.
fn room_outside_ram(stage: &mut Stage) -> Outcome {
    let end = stage.ram_end;
    [end, end - 64, 0xc000_0000, 1 << 63]
        .into_iter()
        .try_for_each(|at| refuses_room(stage, Descriptor::writable(at, ROOM)))
}

/// 5.10.6: seven operations. Whoever says another one is answered by a reset, and so is a stream on which it is said.
fn unknown_operations(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    for op in [0, 8, 0x7fff, 0xffff] {
        streams.is_refused(streams.to(NOBODY, op))?;
        streams.connect(streams.to(BUSY, REQUEST))?;
        streams.is_refused(streams.to(BUSY, op))?;
    }
    Ok(())
}

/// 5.10.6: streams alone were agreed upon.
fn unknown_types(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    for kind in [0, 2, 3, 0xffff] {
        for port in [NOBODY, BUSY] {
            let request = Packet {
                kind,
                ..streams.to(port, REQUEST)
            };
            streams.is_refused(request)?;
        }
    }
    Ok(())
}

/// 5.10.6.4.1: packets come from this guest, for the host. Those of another are not answered, and those to another are refused.
fn others(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    for cid in [0, 1, HOST, 4, u64::MAX] {
        let from = Packet {
            src_cid: cid,
            ..streams.to(BUSY, REQUEST)
        };
        streams.say(from)?;
    }
    is("what came of it", streams.receive.ring.used_index(), 0u64)?;
    for cid in [0, 1, 4, 1 << 32, u64::MAX] {
        let to = Packet {
            dst_cid: cid,
            ..streams.to(BUSY, REQUEST)
        };
        streams.is_refused(to)?;
    }
    Ok(())
}

/// 5.10.6.4: what belongs to no connection is answered by a reset, and a reset by nothing.
fn of_no_connection(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    for op in [RESPONSE, SHUTDOWN, RW, 6, 7] {
        streams.is_refused(streams.to(BUSY, op))?;
    }
    let before = streams.receive.ring.used_index();
    (0..100).try_for_each(|_| streams.say(streams.to(BUSY, RST)))?;
    (0..4).try_for_each(|_| stage.disk.works())?;
    let streams = &stage.streams;
    is("what came of it", streams.receive.ring.used_index(), before)
}

/// 5.10.6.5: a connection is asked for once. The second time ends it.
fn request_twice(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    streams.connect(streams.to(BUSY, REQUEST))?;
    streams.is_refused(streams.to(BUSY, REQUEST))?;
    streams.connect(streams.to(BUSY, REQUEST))
}

/// 5.10.6.6: who has said that he sends no more sends no more.
fn data_behind_the_end(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    streams.connect(streams.to(DEAF, REQUEST))?;
    let end = Packet {
        flags: 2,
        ..streams.to(DEAF, SHUTDOWN)
    };
    streams.say(end)?;
    let data = Packet {
        len: 100,
        ..streams.to(DEAF, RW)
    };
    streams.is_refused(data)
}

/// 5.10.6.4: what is asked of nobody is answered by a reset, as far as there is room for it. Here there is none, for 6,000 of them.
fn flood_of_requests(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up_without_room()?;
    let at = streams.send.ring.buffers();
    for round in 0..6000u32 / u32::from(SIZE) {
        for head in 0..SIZE {
            let place = at + u64::from(head) * 64;
            let request = Packet {
                src_port: round * u32::from(SIZE) + u32::from(head),
                ..streams.to(NOBODY, REQUEST)
            };
            request.write(place);
            let ring = &mut streams.send.ring;
            ring.describe(head, Descriptor::readable(place, HEADER_LEN));
            ring.put(head);
        }
        streams.send.ring.publish();
        streams.send.kick();
        for _ in 0..SIZE {
            streams.send.next_answer()?;
        }
    }
    streams.send.device.runs()?;
    streams.give_room();
    (0..100).try_for_each(|_| is("the operation", streams.hear()?, RST))
}

/// A guest may have many connections, and its next life none of them: the host has let go of all.
fn flood_of_connections(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    for port in 0..100 {
        let request = Packet {
            src_port: OWN + port,
            ..streams.to(DEAF, REQUEST)
        };
        streams.say(request)?;
        streams.hear()?;
    }
    streams.send.device.runs()
}

/// 2.4.1: a device that is reset touches no memory any more. Data flow both ways when that happens.
fn reset_in_flight(stage: &mut Stage) -> Outcome {
    let streams = &mut stage.streams;
    streams.bring_up()?;
    let request = Packet {
        alloc: u32::MAX,
        ..streams.to(BUSY, REQUEST)
    };
    streams.connect(request)?;
    let at = streams.send.ring.buffers();
    let data = Packet {
        len: 4000,
        ..streams.to(BUSY, RW)
    };
    data.write(at);
    for head in 0..SIZE {
        let ring = &mut streams.send.ring;
        ring.describe(head, Descriptor::readable(at, HEADER_LEN + data.len));
        ring.put(head);
    }
    streams.send.ring.publish();
    streams.send.kick();
    streams.send.device.reset()?;
    let place = streams.receive.ring.buffers();
    let len = 32 * u64::from(ROOM);
    touches_no_more(stage, (place, len), |stage| {
        let streams = &stage.streams;
        [&streams.receive, &streams.send].map(|driver| driver.ring.used_index())
    })
}
