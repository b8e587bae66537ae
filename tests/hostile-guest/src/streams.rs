//! The streams to the host: virtio-vsock (virtio 1.2, 5.10). At one port of the host somebody takes everything and sends without end, at
//! another somebody takes nothing; at all others there is nobody.

use crate::device::Device;
use crate::driver::Driver;
use crate::mmio::{self, Width};
use crate::outcome::{Outcome, becomes, is, there};
use crate::ram;
use crate::ring::Descriptor;

/// The device type.
pub const KIND: u16 = 19;

/// A header's length (5.10.6).
pub const HEADER_LEN: u32 = 44;
/// VIRTIO_VSOCK_OP_REQUEST and so on.
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
/// VIRTIO_VSOCK_TYPE_STREAM
pub const STREAM: u16 = 1;
/// The host's context id.
pub const HOST: u64 = 2;

/// A port of the host where nobody listens, one where somebody is busy both ways, and one where nothing is taken.
pub const NOBODY: u32 = 9999;
pub const BUSY: u32 = 7000;
pub const DEAF: u32 = 7001;
/// The guest's own port.
pub const OWN: u32 = 77;

/// Each queue's memory.
const SHARE: u64 = 4 << 20;
/// Room for one packet, and as many of them.
pub const ROOM: u32 = 4096;
const ROOMS: u16 = 32;

/// The device and the two of its queues that carry packets, which are brought up together.
#[derive(Debug)]
pub struct Streams {
    /// To the guest.
    pub receive: Driver,
    /// From the guest.
    pub send: Driver,
}

/// A packet's header, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub alloc: u32,
    pub forwarded: u32,
}

impl Packet {
    /// Writes it.
    pub fn write(&self, at: u64) {
        ram::store(at, self.src_cid);
        ram::store(at + 8, self.dst_cid);
        ram::store(at + 16, self.src_port);
        ram::store(at + 20, self.dst_port);
        ram::store(at + 24, self.len);
        ram::store(at + 28, self.kind);
        ram::store(at + 30, self.op);
        ram::store(at + 32, self.flags);
        ram::store(at + 36, self.alloc);
        ram::store(at + 40, self.forwarded);
    }
}

impl Streams {
    /// With its rings and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        Streams {
            receive: Driver::new(device, base),
            send: Driver::of_queue(device, base + SHARE, 1, 0),
        }
    }

    /// From whatever state to a device that works, with no room for packets yet.
    pub fn bring_up_without_room(&mut self) -> Outcome {
        self.receive.negotiate()?;
        for driver in [&mut self.receive, &mut self.send] {
            driver.lay_out();
            driver.enable();
        }
        self.receive.go();
        self.receive.device.runs()
    }

    /// The same, with room.
    pub fn bring_up(&mut self) -> Outcome {
        self.bring_up_without_room()?;
        self.give_room();
        Ok(())
    }

    /// Where the buffer with this head is.
    fn room(&self, head: u32) -> u64 {
        self.receive.ring.buffers() + u64::from(head) * u64::from(ROOM)
    }

    /// Makes room for packets.
    pub fn give_room(&mut self) {
        for head in 0..ROOMS {
            let room = Descriptor::writable(self.room(head.into()), ROOM);
            self.receive.ring.describe(head, room);
            self.receive.ring.put(head);
        }
        self.receive.ring.publish();
        self.receive.kick();
    }

    /// A packet without data, to a port of the host.
    pub fn to(&self, port: u32, op: u16) -> Packet {
        let config = self.send.device.config;
        Packet {
            src_cid: mmio::read(config, Width::Four),
            dst_cid: HOST,
            src_port: OWN,
            dst_port: port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            alloc: 1 << 16,
            forwarded: 0,
        }
    }

    /// Sends a packet, with as much behind the header as it says, and waits until the device has taken it.
    pub fn say(&mut self, packet: Packet) -> Outcome {
        self.say_in(packet, HEADER_LEN + packet.len)
    }

    /// Sends a packet in a buffer of so many bytes.
    pub fn say_in(&mut self, packet: Packet, len: u32) -> Outcome {
        let at = self.send.ring.buffers();
        packet.write(at);
        self.send.ring.describe(0, Descriptor::readable(at, len));
        let used = self.send.ask(0)?;
        is("the number of bytes written to a packet", used.len, 0u64)
    }

    /// Waits for the next packet, whose operation is returned; its buffer is room again.
    pub fn hear(&mut self) -> Outcome<u16> {
        let used = self.receive.next_answer()?;
        let op = ram::load(self.room(used.id) + 30);
        let head = there("a head", u16::try_from(used.id).ok())?;
        self.receive.ring.offer(head);
        self.receive.kick();
        Ok(op)
    }

    /// Waits for a packet with this operation, whatever else comes before.
    pub fn hear_of(&mut self, op: u16) -> Outcome {
        for _ in 0..10_000 {
            if self.hear()? == op {
                return Ok(());
            }
        }
        is("the operation that is waited for", 0u64, op)
    }

    /// Says something that must be answered by a reset.
    pub fn is_refused(&mut self, packet: Packet) -> Outcome {
        self.say(packet)?;
        self.hear_of(RST)?;
        self.send.device.runs()
    }

    /// Connects to somebody on the host.
    pub fn connect(&mut self, packet: Packet) -> Outcome {
        self.say(packet)?;
        self.hear_of(RESPONSE)
    }

    /// Says something that breaks the device.
    pub fn breaks(&mut self, packet: Packet, len: u32) -> Outcome {
        let at = self.send.ring.buffers();
        packet.write(at);
        self.send.ring.describe(0, Descriptor::readable(at, len));
        self.send.ring.offer(0);
        self.send.kick();
        self.send.device.needs_reset()
    }

    /// Resets it, and calls somebody who is not there: that is answered.
    pub fn works(&mut self) -> Outcome {
        self.bring_up()?;
        self.is_refused(self.to(NOBODY, REQUEST))
    }

    /// Waits until the device has used this many buffers of the guest's.
    pub fn fills(&self, count: u16) -> Outcome {
        becomes("the buffers that were filled", count.into(), || {
            // Leaves the guest, so that the host has the processor.
            self.receive.device.get(crate::device::STATUS);
            self.receive.ring.used_index().into()
        })
    }
}
