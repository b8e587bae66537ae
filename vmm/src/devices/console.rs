//! COM1: a 16550A whose other end is a terminal, a file, or nothing.
//!
//! The guest's output goes through a bounded buffer to a thread of its own, so that a vCPU never waits for whoever reads it; what
//! does not fit is dropped, and the reader is told how much. The same thread tells an [`audience`], which comes and goes.

pub mod audience;
mod backlog;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vm_superio::Serial;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use self::audience::{Audience, Listener};
use self::backlog::{Sender, backlog};
use crate::bus;
use crate::config::ConsoleConfig;

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
    /// No thread, no eventfd.
    #[error("cannot start the console")]
    System(#[from] io::Error),
}

/// Bytes of output that may wait for the reader.
const BACKLOG: usize = 64 << 10;

type Uart = Serial<Irq, NoEvents, Output>;

/// COM1.
pub struct Console {
    uart: Mutex<Uart>,
    irq: Arc<EventFd>,
    audience: Arc<Audience>,
}

/// The serial port's interrupt.
struct Irq(Arc<EventFd>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Takes the guest's bytes without ever waiting.
#[derive(Clone)]
struct Output {
    bytes: Arc<Sender>,
    dropped: Arc<AtomicU64>,
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let dropped = data.len() - self.bytes.send(data);
        self.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes a console's output. It ends when the console is gone, after the last byte.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits until all output is written. To be called when the console has been dropped.
    pub fn finish(self) {
        // The writer does not panic; if it did, there is nothing left to write.
        let _ = self.0.join();
    }
}

impl Console {
    /// Opens the console's other end.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(config: &ConsoleConfig) -> Result<(Arc<Self>, Writer), Error> {
        let audience = Arc::new(Audience::default());
        let (bytes, writer) = match config {
            ConsoleConfig::Null => writer(io::sink(), audience.clone())?,
            ConsoleConfig::Stdio => writer(io::stdout(), audience.clone())?,
            ConsoleConfig::File(path) => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|source| Error::File {
                        path: path.clone(),
                        source,
                    })?;
                writer(file, audience.clone())?
            }
        };
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let output = Output {
            bytes,
            dropped: Arc::default(),
        };
        let uart = Mutex::new(Serial::new(Irq(irq.clone()), output));
        let console = Console {
            uart,
            irq,
            audience,
        };
        Ok((Arc::new(console), writer))
    }

    /// Hears what the guest writes, from a little before now on.
    pub fn listen(&self) -> Listener {
        self.audience.join()
    }

    /// The interrupt, for KVM.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// The state after power-on, with the same other end: for a guest that boots again.
    pub fn reset(&self) {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        let output = uart.writer().clone();
        *uart = Serial::new(Irq(self.irq.clone()), output);
        // An interrupt of the last life; that there is none is no error.
        let _ = self.irq.read();
    }

    /// Gives the guest input. What its FIFO has no room for stays behind: the rest of `input` is returned.
    pub fn feed<'i>(&self, input: &'i [u8]) -> &'i [u8] {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        let room = uart.fifo_capacity().min(input.len());
        let (now, later) = input.split_at_checked(room).unwrap_or((input, &[]));
        match uart.enqueue_raw_bytes(now) {
            Ok(taken) => input.get(taken..).unwrap_or_default(),
            Err(_) => later,
        }
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
        let uart = self.uart.get_mut().unwrap_or_else(PoisonError::into_inner);
        let dropped = uart.writer().dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            log::warn!("console: {dropped} bytes of output were dropped: nobody read them in time");
        }
    }
}

/// Starts the thread that writes to `sink`, and tells the audience.
fn writer(
    mut sink: impl Write + Send + 'static,
    audience: Arc<Audience>,
) -> io::Result<(Arc<Sender>, Writer)> {
    let (sender, receiver) = backlog(BACKLOG);
    let run = move || {
        let mut chunk = Vec::new();
        while receiver.receive(&mut chunk) {
            audience.say(&chunk);
            // A reader that has gone is no reason to end the VM.
            let _ = sink.write_all(&chunk).and_then(|()| sink.flush());
            chunk.clear();
        }
    };
    let thread = thread::Builder::new().name("console".into()).spawn(run)?;
    Ok((Arc::new(sender), Writer(thread)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Device;

    #[test]
    fn output_reaches_the_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (console, writer) = Console::open(&ConsoleConfig::File(path.clone())).unwrap();
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
    fn a_reader_that_does_not_read_stops_nobody() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (bytes, _writer) = super::writer(writer, Arc::default()).unwrap();
        let mut output = Output {
            bytes,
            dropped: Arc::default(),
        };
        for _ in 0..4 {
            output.write_all(&[b'x'; BACKLOG]).unwrap();
        }
        assert!(
            output.dropped.load(Ordering::Relaxed) > 0,
            "the pipe and the backlog together hold less"
        );
        drop(reader);
    }

    #[test]
    fn a_reset_forgets_the_registers_and_keeps_the_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (console, writer) = Console::open(&ConsoleConfig::File(path.clone())).unwrap();
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
        let (console, writer) = Console::open(&ConsoleConfig::Null).unwrap();
        let mut listener = console.listen();
        console.write(0, b"!");
        drop(console);
        writer.finish();
        assert!(listener.recent.is_empty());
        assert_eq!(&*listener.live.try_recv().unwrap(), b"!");
    }

    #[test]
    fn input_waits_for_room() {
        let (console, _) = Console::open(&ConsoleConfig::Null).unwrap();
        let input = [b'x'; 200];
        let rest = console.feed(&input);
        assert!(!rest.is_empty() && rest.len() < input.len());
    }
}
