//! The control queue (virtio 1.2, 5.1.6.5). The one command is how many pairs of queues the driver uses; to everything else the
//! answer is that it failed.

use std::sync::Arc;

use super::tap::Port;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::{self, Chain};

const OK: u8 = 0;
const ERR: u8 = 1;
/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (5.1.6.5.6).
const PAIRS_SET: [u8; 2] = [4, 0];

/// What answers.
#[derive(Debug)]
pub struct Control {
    /// The host's side.
    pub port: Arc<dyn Port>,
    /// How many pairs there may be: those that the driver enabled, or one if it did not take VIRTIO_NET_F_MQ.
    pub pairs: usize,
}

impl Control {
    /// Answers one command; says how many bytes it wrote.
    ///
    /// # Errors
    /// When the guest left no room for the answer.
    pub fn serve(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, queue::Error> {
        let answer = match self.pairs_set(memory, chain)? {
            Some(pairs) if (1..=self.pairs).contains(&pairs) => self.use_pairs(pairs),
            _ => ERR,
        };
        chain.write_at(memory, 0, &[answer])?;
        Ok(1)
    }

    /// The number of pairs, if that is the command.
    fn pairs_set(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
    ) -> Result<Option<usize>, queue::Error> {
        let mut command = [0; 4];
        if chain.readable_len() != command.len() {
            return Ok(None);
        }
        chain.read_at(memory, 0, &mut command)?;
        let [class, name, pairs @ ..] = command;
        let wanted = [class, name] == PAIRS_SET;
        Ok(wanted.then_some(u16::from_le_bytes(pairs).into()))
    }

    fn use_pairs(&self, pairs: usize) -> u8 {
        match self.port.use_queues(pairs) {
            Ok(()) => OK,
            Err(error) => {
                log::debug!("virtio-net: {pairs} queues of the tap: {error}");
                ERR
            }
        }
    }
}
