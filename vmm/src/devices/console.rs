//! The guest's console: what it writes goes to a terminal, a file, a pty or nowhere, and what is typed there comes to it.
//!
//! The guest has a serial port (COM1, a 16550A) in any case. It is the console unless the user wants a virtio-console in its place; then what
//! is typed goes there, and what the guest writes to either is shown.
//!
//! The guest's output goes through a bounded buffer to a thread of its own, so that a vCPU never waits for whoever reads it; what
//! does not fit is dropped, and the reader is told how much. The same thread tells an [`audience`], which comes and goes.

pub mod audience;
mod backlog;
pub mod output;
pub mod pty;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Serial;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use self::audience::{Audience, Listener};
use self::output::{Dropped, Output, Writer};
use self::pty::Pty;
use crate::bus;
use crate::config::{ConsoleConfig, ConsoleDevice};
use crate::devices::virtio::console::{Hvc, Line};
use crate::terminal::Size;

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("cannot write the console to {path}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pseudo-terminal.
    #[error("cannot have a pty for the console; try another --console")]
    Pty(#[source] io::Error),
    /// No thread, no eventfd.
    #[error("cannot start the console")]
    System(#[from] io::Error),
}

/// The console is a serial port.
#[derive(Debug, thiserror::Error)]
#[error(
    "the VM's console is its serial port, which has no size: `orlop run --console-device virtio` gives it one that has"
)]
pub struct NoSize;

type Uart = Serial<Irq, NoEvents, Output>;

/// The console: COM1 as a device on the bus, and all that is behind it.
pub struct Console {
    uart: Mutex<Uart>,
    irq: Arc<EventFd>,
    output: Output,
    /// What stands behind the virtio-console, if there is one.
    line: Option<Line>,
    audience: Arc<Audience>,
    pty: Option<Arc<Pty>>,
}

/// The serial port's interrupt.
struct Irq(Arc<EventFd>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Console {
    /// Opens the console's other end.
    ///
    /// # Errors
    /// When the file cannot be opened, or there is no pty to be had.
    pub fn open(
        config: &ConsoleConfig,
        device: ConsoleDevice,
    ) -> Result<(Arc<Self>, Writer), Error> {
        let audience = Arc::new(Audience::default());
        let dropped = Dropped::default();
        let mut pty = None;
        let start = |sink: Box<dyn io::Write + Send>| {
            Writer::start(sink, audience.clone(), dropped.clone())
        };
        let (output, writer) = match config {
            ConsoleConfig::Null => start(Box::new(io::sink()))?,
            ConsoleConfig::Stdio => start(Box::new(io::stdout()))?,
            ConsoleConfig::File(path) => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|source| Error::File {
                        path: path.clone(),
                        source,
                    })?;
                start(Box::new(file))?
            }
            ConsoleConfig::Pty => {
                let pty = pty.insert(Arc::new(Pty::open().map_err(Error::Pty)?));
                start(Box::new(pty::Sink::new(pty.clone(), dropped.clone())))?
            }
        };
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let line = match device {
            ConsoleDevice::Serial => None,
            ConsoleDevice::Virtio => Some(Line::new(output.clone())?),
        };
        let uart = Mutex::new(Serial::new(Irq(irq.clone()), output.clone()));
        let console = Console {
            uart,
            irq,
            output,
            line,
            audience,
            pty,
        };
        Ok((Arc::new(console), writer))
    }

    /// Hears what the guest writes, from a little before now on.
    pub fn listen(&self) -> Listener {
        self.audience.join()
    }

    /// The serial port's interrupt, for KVM.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// The virtio-console, if that is the console; idle.
    pub fn hvc(&self) -> Option<Hvc> {
        self.line.clone().map(Hvc::new)
    }

    /// The pseudo-terminal, if that is the other end.
    pub fn pty(&self) -> Option<&Arc<Pty>> {
        self.pty.as_ref()
    }

    /// Where the pseudo-terminal is, if that is the other end.
    pub fn path(&self) -> Option<&Path> {
        self.pty.as_ref().map(|pty| pty.path())
    }

    /// The state after power-on, with the same other end: for a guest that boots again. A size stays.
    pub fn reset(&self) {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        *uart = Serial::new(Irq(self.irq.clone()), self.output.clone());
        // An interrupt of the last life; that there is none is no error.
        let _ = self.irq.read();
        if let Some(line) = &self.line {
            line.forget_input();
        }
    }

    /// Gives the guest input. What there is no room for stays behind: the rest of `input` is returned.
    pub fn feed<'i>(&self, input: &'i [u8]) -> &'i [u8] {
        if let Some(line) = &self.line {
            return line.feed(input);
        }
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        let room = uart.fifo_capacity().min(input.len());
        let (now, later) = input.split_at_checked(room).unwrap_or((input, &[]));
        match uart.enqueue_raw_bytes(now) {
            Ok(taken) => input.get(taken..).unwrap_or_default(),
            Err(_) => later,
        }
    }

    /// The terminal at the other end is so large now.
    ///
    /// # Errors
    /// When the console is the serial port.
    pub fn resize(&self, size: Size) -> Result<(), NoSize> {
        self.line.as_ref().ok_or(NoSize)?.resize(size);
        Ok(())
    }
}

impl bus::Device for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Ok(register), [byte]) = (u8::try_from(offset), data) {
            let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
            *byte = uart.read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), [byte]) = (u8::try_from(offset), data) {
            let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
            // It fails only when the interrupt's eventfd is full, and then an interrupt is pending anyway.
            let _ = uart.write(register, *byte);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let dropped = self.output.dropped().count();
        if dropped > 0 {
            log::warn!("console: {dropped} bytes of output were dropped: nobody read them in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Device;

    fn open(config: &ConsoleConfig) -> (Arc<Console>, Writer) {
        Console::open(config, ConsoleDevice::Serial).unwrap()
    }

    #[test]
    fn output_reaches_the_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (console, writer) = open(&ConsoleConfig::File(path.clone()));
        for byte in b"hello\n" {
            console.write(0, &[*byte]);
        }
        // Accesses that no driver makes.
        console.write(0, b"xy");
        console.write(u64::MAX, b"z");
        console.read(0, &mut []);
        drop(console);
        writer.finish();
        assert_eq!(std::fs::read(path).unwrap(), b"hello\n");
    }

    #[test]
    fn a_reset_forgets_the_registers_and_keeps_the_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (console, writer) = open(&ConsoleConfig::File(path.clone()));
        const SCRATCH: u64 = 7;
        console.write(SCRATCH, &[0x5a]);
        console.write(0, b"1");
        console.reset();
        let mut scratch = [0xff];
        console.read(SCRATCH, &mut scratch);
        assert_eq!(scratch, [0]);
        console.write(0, b"2");
        drop(console);
        writer.finish();
        assert_eq!(std::fs::read(path).unwrap(), b"12");
    }

    #[test]
    fn what_is_written_nowhere_is_heard_all_the_same() {
        let (console, writer) = open(&ConsoleConfig::Null);
        let mut listener = console.listen();
        console.write(0, b"!");
        drop(console);
        writer.finish();
        assert!(listener.recent.is_empty());
        assert_eq!(&*listener.live.try_recv().unwrap(), b"!");
    }

    #[test]
    fn input_waits_for_room() {
        let (console, _) = open(&ConsoleConfig::Null);
        let input = [b'x'; 200];
        let rest = console.feed(&input);
        assert!(!rest.is_empty() && rest.len() < input.len());
    }
}
