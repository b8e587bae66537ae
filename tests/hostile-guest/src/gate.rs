//! The host decides how many rounds there are, by the disk's first 8 bytes: the number of rounds that may begin, or [`ENOUGH`]. The guest
//! reads them until they say something new. So it has done nothing for a while when the host looks at the VMM.

use crate::disk::Disk;
use crate::outcome::Outcome;
use crate::ram;

/// The host has seen enough.
const ENOUGH: u64 = u64::MAX;

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
