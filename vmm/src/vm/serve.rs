//! What clients ask, done one after the other.
//!
//! ```text
//!              boot              pause
//!   Created ─────────► Running ◄────────► Paused
//!                         ▲      resume      │
//!                         └────── reset ─────┘
//! ```
//!
//! A guest that stands still hears nothing: what it would have to hear is refused then.

use std::path::Path;

use super::{Machine, Outcome, Vm, build};
use crate::config::{DeviceConfig, FsConfig};
use crate::control::news::Happening;
use crate::control::{Refusal, Request, State, Status};
use crate::devices::virtio::mem;
use crate::memory::Sharing;
use crate::pci::{self, DeviceNumber};
use crate::vcpu::{Phase, Vcpu, exits};
use crate::vm::Error;

impl Machine {
    /// Where it is between boot and end.
    fn state(&self) -> State {
        match self.gate.phase() {
            _ if !self.has_booted => State::Created,
            Phase::Paused => State::Paused,
            Phase::Running | Phase::Ended => State::Running,
        }
    }

    /// Whether its guest runs, or has at least begun to.
    fn has_begun(&self) -> Result<(), Refusal> {
        match self.state() {
            State::Created => Err(Refusal::NotBooted),
            State::Paused | State::Running => Ok(()),
        }
    }

    /// Whether its guest can hear of `what`.
    fn hears_of(&self, what: &'static str) -> Result<(), Refusal> {
        match self.state() {
            State::Created => Err(Refusal::NotBooted),
            State::Paused => Err(Refusal::Paused(what)),
            State::Running => Ok(()),
        }
    }
}

impl Vm {
    /// Does what a client asks. A client that has gone does not hear the answer, and nothing else follows from that.
    pub(super) fn serve(&mut self, machine: &mut Machine, request: Request) -> Option<Outcome> {
        match request {
            Request::Describe(reply) => {
                let _ = reply.send(self.status(machine));
            }
            Request::Boot(reply) => {
                if !machine.has_booted {
                    self.boot(machine);
                }
                let _ = reply.send(());
            }
            Request::Pause(reply) => {
                let _ = reply.send(self.shift(machine, Phase::Paused, Happening::Paused));
            }
            Request::Resume(reply) => {
                let _ = reply.send(self.shift(machine, Phase::Running, Happening::Resumed));
            }
            Request::PowerButton(reply) => {
                let _ = reply.send(self.press(machine));
            }
            Request::AddDevice(config, files, reply) => {
                let added = self.add_device(machine, &config);
                // The device has made them its own, or there is none.
                drop(files);
                let _ = reply.send(added);
            }
            Request::RemoveDevice(number, reply) => {
                let hears = machine.hears_of("a device that is to go");
                let _ = reply.send(hears.and_then(|()| machine.bays.ask_for(number)));
            }
            Request::Resize(resize, reply) => {
                let hears = machine.hears_of("another size");
                let _ = reply.send(hears.and_then(|()| self.resize(machine, resize)));
            }
            Request::SetBalloon(bytes, reply) => {
                let _ = reply.send(self.set_balloon(machine, bytes));
            }
            Request::Reset(reply) => {
                let begun = machine.has_begun();
                let resets = begun.is_ok();
                let _ = reply.send(begun);
                return resets.then_some(Outcome::Reset);
            }
            Request::Kill(reply) => {
                let _ = reply.send(());
                return Some(Outcome::Killed);
            }
        }
        None
    }

    fn press(&self, machine: &Machine) -> Result<(), Refusal> {
        machine.hears_of("the power button")?;
        // It fails only when the eventfd is full, and then the button is being pressed anyway.
        let _ = machine.power_button.write(1);
        self.news.tell(Happening::PowerButton);
        Ok(())
    }

    fn set_balloon(&self, machine: &Machine, bytes: u64) -> Result<(), Refusal> {
        let balloon = self.front.as_ref().and_then(|front| front.balloon.as_ref());
        let balloon = balloon.ok_or(Refusal::NoBalloon)?;
        if self.config.memory.backing.hugepages.is_some() && bytes > 0 {
            return Err(Refusal::HugePages);
        }
        if machine.bays.has_host_devices() && bytes > 0 {
            return Err(Refusal::Pinned);
        }
        let memory = self.config.memory.size.bytes();
        if bytes >= memory {
            return Err(Refusal::BalloonSize {
                memory_mib: memory >> 20,
            });
        }
        balloon.set(bytes);
        Ok(())
    }

    fn add_device(
        &mut self,
        machine: &mut Machine,
        config: &DeviceConfig,
    ) -> Result<DeviceNumber, Refusal> {
        if let DeviceConfig::Fs(fs) = config {
            self.can_share(machine, fs)?;
        }
        let device = build::open_device(config, self.config.vcpus.boot, &mut self.passage);
        match device.and_then(|device| machine.bays.plug(device)) {
            Ok(number) => {
                self.news.tell(Happening::DeviceAdded(number));
                Ok(number)
            }
            Err(Error::Pci(pci::Error::BusFull | pci::Error::WindowFull(_))) => {
                Err(Refusal::NoPlace)
            }
            Err(error) => Err(Refusal::Host(crate::error::line(&error))),
        }
    }

    /// Whether another shared directory can be of any use. A backend whom nobody needs must not lose its only client by being asked.
    fn can_share(&self, machine: &Machine, fs: &FsConfig) -> Result<(), Refusal> {
        if build::sharing(&self.config) == Sharing::Private {
            return Err(Refusal::NotShared);
        }
        let tag = Some(fs.tag.as_str());
        let devices = machine.bays.bus().describe();
        if devices
            .iter()
            .any(|device| device.identity.tag.as_deref() == tag)
        {
            return Err(Refusal::TagTaken(fs.tag.to_string()));
        }
        Ok(())
    }

    /// Has the vCPUs stand still or go on, if they do not yet.
    fn shift(&self, machine: &Machine, phase: Phase, what: Happening) -> Result<(), Refusal> {
        machine.has_begun()?;
        if machine.gate.phase() != phase {
            machine.gate.set(phase);
            self.news.tell(what);
        }
        Ok(())
    }

    fn status(&self, machine: &Machine) -> Status {
        let vcpus = machine.processors.made().iter();
        let boot = self.config.memory.size.bytes();
        let memory = self.front.as_ref().and_then(|front| front.memory.as_ref());
        let with = |more: fn(&mem::Target) -> u64| boot.saturating_add(memory.map_or(0, more));
        Status {
            name: self.config.name.as_str().into(),
            state: machine.state(),
            vcpus: machine.processors.count(),
            most_vcpus: self.config.vcpus.limit().get(),
            memory: with(mem::Target::plugged),
            wanted_memory: with(mem::Target::requested),
            most_memory: with(mem::Target::most),
            console: self.config.console_device,
            pty: self.pty().map(Path::to_owned),
            sharing: build::sharing(&self.config),
            devices: machine.bays.bus().describe(),
            exits: exits::sum(vcpus.map(Vcpu::exits)).collect(),
        }
    }
}
