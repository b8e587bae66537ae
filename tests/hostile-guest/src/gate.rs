//! What the host decides, by the disk's first sector.
//!
//! Its first 8 bytes are the number of rounds that may begin, or [`ENOUGH`]. The guest reads them until they say something new. So it has
//! done nothing for a while when the host looks at the VMM. The 8 bytes behind them say what is attacked.

use crate::disk::Disk;
use crate::outcome::Outcome;
use crate::ram;

/// The host has seen enough.
const ENOUGH: u64 = u64::MAX;
/// The network card is the host kernel's, by vhost-net, and the only one that is attacked.
const CARD_OF_THE_KERNEL: u64 = 1;

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// All that the VMM is.
    Vmm,
    /// vhost-net, behind the network card.
    Vhost,
}

/// Reads what is to be attacked.
pub fn target(disk: &mut Disk) -> Outcome<Target> {
    disk.read(0)?;
    Ok(match ram::load::<u64>(disk.data() + 8) {
        CARD_OF_THE_KERNEL => Target::Vhost,
        _ => Target::Vmm,
    })
}

/// Waits for the host: `true` for another round behind `round`.
pub fn another(disk: &mut Disk, round: u64) -> Outcome<bool> {
    disk.driver.bring_up()?;
    loop {
        disk.read(0)?;
        match ram::load::<u64>(disk.data()) {
            ENOUGH => return Ok(false),
            allowed if allowed > round => return Ok(true),
            _ => {}
        }
    }
}
