//! All devices, and what must hold after every attack.

use crate::attacks::Attack;
use crate::balloon::{self, Balloon};
use crate::card::{self, Card};
use crate::console::{self, Console};
use crate::device::Device;
use crate::disk::{self, Disk};
use crate::entropy::{self, Entropy};
use crate::outcome::{Outcome, is, there};
use crate::plugged::{self, Plugged};
use crate::ram;
use crate::streams::{self, Streams};

/// The memory of each device's ring and buffers.
const SHARE: u64 = 8 << 20;

/// The devices.
#[derive(Debug)]
pub struct Stage {
    /// The disk.
    pub disk: Disk,
    /// The source of randomness.
    pub entropy: Entropy,
    /// The balloon.
    pub balloon: Balloon,
    /// The network card.
    pub card: Card,
    /// vsock.
    pub streams: Streams,
    /// The console.
    pub console: Console,
    /// The memory that comes and goes.
    pub plugged: Plugged,
    /// Where RAM ends, below the hole.
    pub ram_end: u64,
}

impl Stage {
    /// Finds the devices and sees them work.
    pub fn set_up(zero_page: u64) -> Outcome<Self> {
        let ram_end = ram::end(zero_page);
        is("whether the arena is RAM", ram::ARENA.end <= ram_end, true)?;
        let disk = there("the disk", Device::find(disk::KIND))?;
        let entropy = there("the source of randomness", Device::find(entropy::KIND))?;
        let balloon = there("the balloon", Device::find(balloon::KIND))?;
        let card = there("the network card", Device::find(card::KIND))?;
        let streams = there("vsock", Device::find(streams::KIND))?;
        let console = there("the console", Device::find(console::KIND))?;
        let plugged = there(
            "the memory that comes and goes",
            Device::find(plugged::KIND),
        )?;
        let mut stage = Stage {
            disk: Disk::new(disk, ram::ARENA.start),
            entropy: Entropy::new(entropy, ram::ARENA.start + SHARE),
            balloon: Balloon::new(balloon, ram::ARENA.start + 2 * SHARE),
            card: Card::new(card, ram::ARENA.start + 3 * SHARE),
            streams: Streams::new(streams, ram::ARENA.start + 4 * SHARE),
            console: Console::new(console, ram::ARENA.start + 5 * SHARE),
            plugged: Plugged::new(plugged, ram::ARENA.start + 6 * SHARE),
            ram_end,
        };
        stage.all_is_well()?;
        stage.plugged.works()?;
        Ok(stage)
    }

    /// Attacks, and looks at what is left: first the devices as they are, then after a reset.
    pub fn survives(&mut self, attack: &Attack) -> Outcome {
        let attacked = (attack.run)(self);
        // Another device has not noticed. One that was attacked itself works again after the reset below.
        let neighbour = match attack.on {
            disk::KIND => self.entropy.works(),
            _ => self.disk.works(),
        };
        let after = self.all_is_well();
        // Each time that memory comes and goes the host changes its mappings, which an emulated host does not bear well.
        let memory = match attack.on {
            plugged::KIND => self.plugged.works(),
            _ => Ok(()),
        };
        attacked.and(neighbour).and(after).and(memory)
    }

    /// Resets the devices and sees them work.
    fn all_is_well(&mut self) -> Outcome {
        self.disk.driver.bring_up()?;
        self.disk.works()?;
        self.entropy.driver.bring_up()?;
        self.entropy.works()?;
        self.balloon.works()?;
        self.console.works()?;
        self.card.bring_up()?;
        self.card.works()?;
        self.streams.works()
    }
}
