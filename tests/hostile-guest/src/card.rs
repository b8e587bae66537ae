//! The network card: virtio-net (virtio 1.2, 5.1). The host sends packets to it all the while, and takes whatever comes.

use crate::device::{Device, STATUS, status};
use crate::driver::Driver;
use crate::gate::Target;
use crate::outcome::{Outcome, is};
use crate::ram;
use crate::ring::Descriptor;

/// The device type.
pub const KIND: u16 = 1;

/// What stands before each packet (5.1.6).
pub const HEADER_LEN: u32 = 12;
/// What an Ethernet frame begins with.
pub const FRAME_HEADER: u32 = 14;
/// A frame of the smallest size.
pub const FRAME: u32 = 60;
/// Room for one packet of the host's.
pub const ROOM: u32 = 4096;

/// VIRTIO_NET_F_MRG_RXBUF
const MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_CTRL_VQ
const CTRL_VQ: u64 = 1 << 17;
/// Without VIRTIO_NET_F_MQ, the control queue is behind the first pair (5.1.2).
const CONTROL: u64 = 2;

/// Each queue's memory.
const SHARE: u64 = 2 << 20;

/// The device and three of its queues, which are brought up together.
#[derive(Debug)]
pub struct Card {
    /// Takes packets.
    pub receive: Driver,
    /// Sends packets.
    pub transmit: Driver,
    /// Asks for other things.
    pub control: Driver,
    /// Who carries the packets.
    pub carrier: Target,
}

/// How often a card of the kernel's is looked at that may say nothing: as long as a kick takes to arrive, many times over.
const LOOKS: u32 = 2000;

impl Card {
    /// With its rings and buffers in the arena from `base` on.
    pub fn new(device: Device, base: u64) -> Self {
        let features = MRG_RXBUF | CTRL_VQ;
        let queue = |index| Driver::of_queue(device, base + index * SHARE, index, features);
        Card {
            receive: queue(0),
            transmit: queue(1),
            control: queue(CONTROL),
            carrier: Target::Vmm,
        }
    }

    /// From whatever state to a device that works, with no buffer in any queue.
    pub fn bring_up(&mut self) -> Outcome {
        self.receive.negotiate()?;
        for driver in [&mut self.receive, &mut self.transmit, &mut self.control] {
            driver.lay_out();
            driver.enable();
        }
        self.receive.go();
        self.receive.device.runs()
    }

    /// Writes a packet with a header of this content (5.1.6) and a broadcast frame behind it, and returns its descriptor.
    pub fn packet(&self, header: [u32; 3]) -> Descriptor {
        let at = self.transmit.ring.buffers();
        (0..)
            .zip(header)
            .for_each(|(index, word)| ram::store(at + 4 * index, word));
        // To all stations, from one that is administered locally, of a type for experiments.
        ram::store(at + 12, u32::MAX);
        ram::store(at + 16, 0x0002_ffffu32);
        ram::store(at + 20, 0x5452_4f4cu32);
        ram::store(at + 24, 0x0000_b588u32);
        Descriptor::readable(at, HEADER_LEN + FRAME)
    }

    /// Has it send what this chain's head says, and go on.
    pub fn sends(&mut self, first: Descriptor) -> Outcome {
        self.transmit.ring.describe(0, first);
        let used = self.transmit.ask(0)?;
        is("the head given back", used.id, 0u64)?;
        is("the number of bytes written to a packet", used.len, 0u64)?;
        self.transmit.device.runs()
    }

    /// The same of a packet that is none: it is dropped. vhost-net may call it a broken rule instead, and needs a reset then.
    pub fn drops(&mut self, first: Descriptor) -> Outcome {
        if self.carrier == Target::Vmm {
            return self.sends(first);
        }
        self.transmit.ring.describe(0, first);
        self.transmit.ring.offer(0);
        self.transmit.kick();
        let transmit = &self.transmit;
        self.watch(|| transmit.ring.has_news())?;
        self.bring_up()
    }

    /// Waits until it says that a rule was broken. vhost-net may ignore it instead: it waits for a driver that is not done yet.
    pub fn refuses(&self) -> Outcome {
        match self.carrier {
            Target::Vmm => self.receive.device.needs_reset(),
            Target::Vhost => self.watch(|| false),
        }
    }

    /// Looks at a card of the kernel's for a while, until it needs a reset or `is_over`. There is no other way for it to be.
    fn watch(&self, is_over: impl Fn() -> bool) -> Outcome {
        let mut now = status::RUNNING;
        for _ in 0..LOOKS {
            now = self.receive.device.get(STATUS);
            if now != status::RUNNING || is_over() {
                break;
            }
        }
        is(
            "the status but for NEEDS_RESET",
            now & !status::NEEDS_RESET,
            status::RUNNING,
        )
    }

    /// Gives it room for one packet, and waits for that.
    pub fn receives(&mut self) -> Outcome {
        let room = Descriptor::writable(self.receive.ring.buffers(), ROOM);
        self.receive.ring.describe(0, room);
        let used = self.receive.ask(0)?;
        is("the head given back", used.id, 0u64)?;
        let whole = (HEADER_LEN + FRAME_HEADER..=ROOM).contains(&used.len);
        is("whether a packet came", whole, true)
    }

    /// Sends a packet and takes one.
    pub fn works(&mut self) -> Outcome {
        let packet = self.packet([0; 3]);
        self.sends(packet)?;
        self.receives()
    }
}
