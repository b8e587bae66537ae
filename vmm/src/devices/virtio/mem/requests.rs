//! What the driver asks for (virtio 1.2, 5.15.6).

use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::{self, Chain};
use crate::memory::pluggable::{Blocks, State};

use super::target::Target;

/// struct virtio_mem_req: type, padding, and for most types an address, a number of blocks, padding.
const REQUEST: usize = 24;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// How a range is, in an answer to [`STATE`].
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// struct virtio_mem_resp: type, padding, state.
const RESPONSE: usize = 10;

/// An answer, and the state of a range where that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer(u16, u16);

impl Answer {
    fn of(kind: u16) -> Self {
        Answer(kind, 0)
    }

    fn bytes(self) -> [u8; RESPONSE] {
        let mut bytes = [0; RESPONSE];
        let (kind, rest) = bytes.split_at_mut(2);
        kind.copy_from_slice(&self.0.to_le_bytes());
        let (_, state) = rest.split_at_mut(RESPONSE - 4);
        state.copy_from_slice(&self.1.to_le_bytes());
        bytes
    }
}

/// Serves a request; says how many bytes the answer has.
///
/// # Errors
/// When the chain has no room for a request or its answer: the driver breaks the rules.
pub fn serve(memory: &GuestMemory, chain: &Chain, target: &Target) -> Result<u32, queue::Error> {
    let mut request = [0; REQUEST];
    chain.read_at(memory, 0, &mut request)?;
    let answer = answer(request, target);
    chain.write_at(memory, 0, &answer.bytes())?;
    target.changed();
    Ok(RESPONSE as u32)
}

fn answer(request: [u8; REQUEST], target: &Target) -> Answer {
    let [
        k0,
        k1,
        _,
        _,
        _,
        _,
        _,
        _,
        address @ ..,
        c0,
        c1,
        _,
        _,
        _,
        _,
        _,
        _,
    ] = request;
    let count = u64::from(u16::from_le_bytes([c0, c1]));
    let kind = u16::from_le_bytes([k0, k1]);
    let Some(blocks) = target.blocks() else {
        return Answer::of(ERROR);
    };
    if kind == UNPLUG_ALL {
        return unplug(blocks, Blocks::unplug_all);
    }
    let offset = target.offset(u64::from_le_bytes(address));
    let range = offset.and_then(|offset| Some((offset, blocks.state(offset, count).ok()?)));
    match (kind, range) {
        (_, None) => Answer::of(ERROR),
        (PLUG, Some((offset, State::Unplugged))) => {
            let more = count.saturating_mul(blocks.size());
            if blocks.plugged().saturating_add(more) > target.requested() {
                return Answer::of(NACK);
            }
            match blocks.plug(offset, count) {
                Ok(()) => Answer::of(ACK),
                Err(error) => {
                    log::warn!("the host does not give the guest more memory: {error}");
                    Answer::of(BUSY)
                }
            }
        }
        (UNPLUG, Some((offset, State::Plugged))) => {
            unplug(blocks, |blocks| blocks.unplug(offset, count))
        }
        (STATE, Some((_, state))) => Answer(
            ACK,
            match state {
                State::Plugged => PLUGGED,
                State::Unplugged => UNPLUGGED,
                State::Mixed => MIXED,
            },
        ),
        _ => Answer::of(ERROR),
    }
}

/// The guest has let go of the blocks; whether the host could make use of that is none of its business.
fn unplug(blocks: &Blocks, how: impl FnOnce(&Blocks) -> std::io::Result<()>) -> Answer {
    if let Err(error) = how(blocks) {
        log::warn!("the host does not take memory back: {error}");
    }
    Answer::of(ACK)
}
