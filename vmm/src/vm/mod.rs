//! A VM's life, and the lives of the guest in it.
//!
//! A [`Vm`] is what stays: the control socket, the console, the devices with what they hold on the host. A [`Machine`] is what a
//! guest boots in: RAM, vCPUs, the bus that the devices are on. A guest that resets itself ends its machine, and the next one is built
//! around the same devices; nothing of the first is left in it.
//!
//! The order of building matters in places: RAM is registered before the interrupt controllers exist, devices are on their buses
//! before the first vCPU runs, and what can fail for the user's sake (files, sockets) fails before that as well.

mod bays;
mod build;
mod error;
mod keyboard;
mod outcome;
mod processors;
mod resize;
mod rest;
mod serve;
mod signals;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};

use vmm_sys_util::eventfd::EventFd;

pub use self::bays::Ejected;
use self::bays::{Bays, Idle};
pub use self::error::Error;
use self::keyboard::Keyboard;
pub use self::outcome::Outcome;
use self::processors::Processors;
use self::rest::Rest;
use crate::config::VmConfig;
use crate::control::news::{Happening, News};
use crate::control::service::Server;
use crate::control::{EndOfLife, Life, Message};
use crate::devices::console;
use crate::devices::console::output::Writer;
use crate::devices::vfio::Passage;
use crate::devices::virtio::balloon::{self, Balloon};
use crate::devices::virtio::mem::{self, Mem};
use crate::memory::rom::Rom;
use crate::memory::{Region, own_code, own_heap};
use crate::socket::{self, Unlink};
use crate::state::StateDirectory;
use crate::vcpu::{Gate, Phase};

/// Builds the VM and runs it to its end. `ready` is called when all is there and the guest is about to boot for the first time; it hears
/// where the console is, if that is a pseudo-terminal.
///
/// # Errors
/// When it cannot be built, at first or for a guest that resets itself; or `ready` fails. All else that happens is an [`Outcome`].
pub fn run(
    config: VmConfig,
    ready: impl FnOnce(&VmConfig, Option<&Path>) -> std::io::Result<()> + 'static,
) -> Result<Outcome, Error> {
    let (controller, messages) = mpsc::channel();
    // Before any thread exists, so that all of them leave these signals to the one that waits for them.
    signals::to_controller(controller.clone()).map_err(|e| Error::System("wait for signals", e))?;
    let recalls = controller.clone();
    let passage = Passage::new(move |address| {
        // Without a controller the VM is ending already.
        let _ = recalls.send(Message::Recalled(address));
    });
    let mut vm = Vm {
        config,
        controller,
        news: News::default(),
        ready: Some(Box::new(ready)),
        life: 0,
        pluggable: None,
        rom: None,
        passage,
        front: None,
        paths: Vec::new(),
    };
    let outcome = loop {
        match vm.live(&messages) {
            Ok(Outcome::Reset) if vm.config.reboot => {
                log::info!("{}: the guest boots again", vm.config.name.as_str());
            }
            outcome => break outcome,
        }
    };
    vm.end(&outcome);
    outcome
}

/// Where messages to the controller come from.
type Controller = Sender<Message>;

/// Hears that all is there.
type Ready = Box<dyn FnOnce(&VmConfig, Option<&Path>) -> std::io::Result<()>>;

/// A VM, over all lives of its guest.
struct Vm {
    config: VmConfig,
    controller: Controller,
    news: News,
    /// Whom to tell that the guest is about to boot, once.
    ready: Option<Ready>,
    /// Which life of the guest is the next.
    life: Life,
    /// The memory that comes and goes, if any may.
    pluggable: Option<Arc<Region>>,
    /// The file that the guest reads as persistent memory, once it is mapped.
    rom: Option<Rom>,
    /// By which it gets devices of the host's.
    passage: Passage,
    /// Opened in the first life, when its kernel has been loaded: one that cannot be leaves nothing behind.
    front: Option<Front>,
    /// What is removed at the end.
    paths: Vec<Unlink>,
}

/// The host's side, which stays when the guest resets itself.
struct Front {
    /// Empty while a guest lives: they are on its bus.
    devices: Vec<Idle>,
    /// How large the balloon is to be, if there is one.
    balloon: Option<balloon::Target>,
    /// How much memory the guest is to have beside that which it boots with, if that may change.
    memory: Option<mem::Target>,
    console: Arc<console::Console>,
    console_writer: Writer,
    clients: Clients,
    keyboard: Keyboard,
}

/// Who controls the VM from outside.
enum Clients {
    /// They can connect, and wait.
    Waiting(UnixListener),
    /// They are served.
    Served(Server),
    /// It is over, for them at least.
    Gone,
}

/// What a guest boots in. Its vCPUs stand before their first instruction.
struct Machine {
    gate: Arc<Gate>,
    processors: Processors,
    bays: Bays,
    power_button: EventFd,
    /// Whether the guest has been let go.
    has_booted: bool,
}

impl Vm {
    /// One life of the guest, from power-on to its end.
    fn live(&mut self, messages: &Receiver<Message>) -> Result<Outcome, Error> {
        let life = self.life;
        self.life = life.wrapping_add(1);
        let mut machine = self.build(EndOfLife::new(self.controller.clone(), life))?;
        if let Some(front) = &mut self.front {
            front.welcome(&self.config, &self.controller, &self.news)?;
        }
        if let Some(ready) = self.ready.take() {
            ready(&self.config, self.pty())
                .map_err(|e| Error::System("go into the background", e))?;
        }
        if life > 0 || self.config.boots {
            self.boot(&mut machine);
        }
        let outcome = self.control(&mut machine, life, messages);
        log::info!("{}: {outcome}", self.config.name.as_str());
        if outcome == Outcome::Reset {
            self.news.tell(Happening::Reset);
        }
        let devices = machine.end();
        if let Some(front) = &mut self.front {
            front.devices = devices;
            front.console.reset();
        }
        Ok(outcome)
    }

    /// Lets the guest go, for the first time in this life.
    fn boot(&self, machine: &mut Machine) {
        machine.has_booted = true;
        machine.gate.set(Phase::Running);
        self.news.tell(Happening::Booted);
    }

    /// The one place that changes a running VM.
    fn control(
        &mut self,
        machine: &mut Machine,
        life: Life,
        messages: &Receiver<Message>,
    ) -> Outcome {
        let mut rest = Rest::None;
        loop {
            let message = messages.recv_timeout(rest.patience());
            rest = match message {
                Ok(_) => Rest::None,
                Err(_) => rest.deeper(),
            };
            match message {
                Ok(Message::GuestEnded(of, outcome)) if of == life => return outcome,
                Ok(Message::Ejected(of, device)) if of == life => {
                    let number = device.number;
                    machine.bays.ejected(device);
                    self.news.tell(Happening::DeviceRemoved(number));
                }
                Ok(Message::VcpuEjected(of, id)) if of == life => machine.processors.ejected(id),
                // The last words of an earlier life.
                Ok(Message::GuestEnded(..) | Message::Ejected(..) | Message::VcpuEjected(..)) => {}
                Ok(Message::Recalled(address)) => machine.bays.recall(address),
                Ok(Message::Kill) => return Outcome::Killed,
                Ok(Message::TerminalResized) => {
                    if let Some(front) = &self.front {
                        front.keyboard.follow_size(&front.console);
                    }
                }
                Ok(Message::Request(request)) => {
                    if let Some(outcome) = self.serve(machine, request) {
                        return outcome;
                    }
                }
                // The signals' thread keeps a sender for ever.
                Err(RecvTimeoutError::Disconnected) => {
                    return Outcome::failed("the VM has lost its threads");
                }
                Err(RecvTimeoutError::Timeout) => {
                    own_heap::give_back();
                    if let Err(error) = own_code::let_go() {
                        log::warn!("code that is not needed any more stays in memory: {error}");
                    }
                }
            }
        }
    }

    /// The pseudo-terminal that the console goes to, if any.
    fn pty(&self) -> Option<&Path> {
        self.front.as_ref().and_then(|front| front.console.path())
    }

    /// The VM's paths first: once nobody listens there, they may be another VM's. Then devices, then those who look on.
    fn end(self, outcome: &Result<Outcome, Error>) {
        drop(self.paths);
        if let Some(front) = self.front {
            let outcome = match outcome {
                Ok(outcome) => outcome.clone(),
                Err(error) => Outcome::failed(crate::error::line(error)),
            };
            front.close(outcome, &self.news);
        }
    }
}

impl Front {
    /// Opens what the VM has on the host. Nobody is served yet.
    fn open(
        config: &VmConfig,
        pluggable: Option<&Arc<Region>>,
        host_devices: Vec<Idle>,
        paths: &mut Vec<Unlink>,
    ) -> Result<Self, Error> {
        let mut devices = build::virtio_devices(config, paths)?;
        let (console, console_writer) =
            console::Console::open(&config.console, config.console_device)?;
        let hvc = console.hvc();
        devices.extend(hvc.map(Idle::from));
        let balloon = build::balloon(config);
        let balloon_target = balloon.as_ref().map(Balloon::target);
        devices.extend(balloon.map(Idle::from));
        let memory = pluggable.and_then(|region| Mem::new(region.clone(), 0));
        let memory_target = memory.as_ref().map(Mem::target);
        devices.extend(memory.map(Idle::from));
        devices.extend(host_devices);
        let (path, listener) = match &config.api_socket {
            Some(path) => (path.clone(), socket::listen_anew(path)),
            None => {
                let state = StateDirectory::of_user();
                (state.socket(&config.name), state.listen(&config.name))
            }
        };
        let listener = listener.map_err(|source| Error::ControlSocket {
            path: path.clone(),
            source,
        })?;
        paths.push(Unlink::later(path));
        Ok(Front {
            devices,
            balloon: balloon_target,
            memory: memory_target,
            console,
            console_writer,
            clients: Clients::Waiting(listener),
            keyboard: Keyboard::default(),
        })
    }

    /// Serves the control socket and the terminal, from the first life on.
    fn welcome(
        &mut self,
        config: &VmConfig,
        controller: &Controller,
        news: &News,
    ) -> Result<(), Error> {
        let listener = match std::mem::replace(&mut self.clients, Clients::Gone) {
            Clients::Waiting(listener) => listener,
            others => {
                self.clients = others;
                return Ok(());
            }
        };
        let console = Arc::downgrade(&self.console);
        let server = Server::start(listener, controller.clone(), news.clone(), console)
            .map_err(|e| Error::System("serve the control socket", e))?;
        self.clients = Clients::Served(server);
        self.keyboard = Keyboard::connect(&config.console, &self.console, controller.clone())
            .map_err(|e| Error::System("read the terminal", e))?;
        Ok(())
    }

    fn close(self, outcome: Outcome, news: &News) {
        drop(self.devices);
        drop(self.console);
        self.console_writer.finish();
        drop(self.keyboard);
        news.tell(Happening::Ended(outcome.clone()));
        if let Clients::Served(server) = self.clients {
            server.stop(outcome);
        }
    }
}

impl Machine {
    /// vCPUs first, then the devices, which are given back idle.
    fn end(self) -> Vec<Idle> {
        self.gate.set(Phase::Ended);
        self.processors.join();
        self.bays.empty()
    }
}
