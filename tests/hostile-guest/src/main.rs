//! A guest that means harm: no operating system, only drivers that do one thing wrong after the other.
//!
//! It finds the VM's disk, its source of randomness, its balloon, its network card, its vsock and the memory that it may have, and goes through the list in [`attacks`]. Each attack breaks one rule of virtio
//! 1.2 and looks whether the device says so, or whether what was done had no effect. Afterwards another device must still work, and
//! so must the attacked one once it is reset.
//!
//! The serial port tells of it: a line `ok NAME` or `FAILED NAME: why` for each attack, `round N over` for each time that the list was
//! gone through, and at the end how many attacks there were. Then the guest powers itself off. It goes on to the next round when the
//! host lets it, by a number in the disk's first sector ([`gate`]); so whoever tests the VMM can look at it in between. Where the host's
//! kernel carries the card's packets, that is all that is attacked: the rest has been.
//!
//! - [`boot`]: the first instructions, and the end;
//! - [`runtime`]: what the compiler takes for granted;
//! - [`ports`], [`mmio`], [`ram`]: the three ways to reach something; [`serial`]: printing;
//! - [`pci`]: finding functions; [`device`]: the registers of a virtio device; [`ring`]: a split virtqueue's memory;
//! - [`driver`]: how a device is brought up rightly; [`disk`], [`entropy`], [`balloon`], [`card`], [`streams`], [`console`] and [`plugged`]:
//!   what to ask of the devices;
//! - [`stage`]: all devices, and what must hold after every attack.

#![no_std]
#![no_main]

#[macro_use]
mod serial;

mod attacks;
mod balloon;
mod boot;
mod card;
mod console;
mod device;
mod disk;
mod driver;
mod entropy;
mod gate;
mod mmio;
mod outcome;
mod pci;
mod plugged;
mod ports;
mod ram;
mod ring;
mod runtime;
mod stage;
mod streams;

use outcome::Outcome;
use stage::Stage;

/// Goes through the list until the host has seen enough, or something failed.
fn run(zero_page: u64) -> Outcome {
    let mut stage = Stage::set_up(zero_page)?;
    let (mut round, mut passed, mut failed) = (0u64, 0u32, 0u32);
    let target = gate::target(&mut stage.disk)?;
    stage.card.carrier = target;
    loop {
        round += 1;
        for attack in attacks::all().filter(|attack| attack.is_on(target)) {
            match stage.survives(attack) {
                Ok(()) => {
                    passed += 1;
                    say!("ok {}", attack.name);
                }
                Err(complaint) => {
                    failed += 1;
                    say!("FAILED {}: {complaint}", attack.name);
                }
            }
        }
        say!("round {round} over");
        if failed > 0 || !gate::another(&mut stage.disk, round)? {
            break;
        }
    }
    say!("{round} rounds: {passed} ok, {failed} failed");
    // Once, for nothing is left to go on with.
    match attacks::slots::eject_everything(&mut stage) {
        Ok(()) => say!("ok hotplug-eject-of-everything"),
        Err(complaint) => say!("FAILED hotplug-eject-of-everything: {complaint}"),
    }
    Ok(())
}
