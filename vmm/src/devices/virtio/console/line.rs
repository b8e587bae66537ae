//! What a virtio-console and the console behind it share: input on its way to the driver, output on its way from it, and the terminal's
//! size. It is there whether a driver is or not.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::devices::console::output::Output;
use crate::devices::virtio::Interrupt;
use crate::terminal::Size;

/// As many bytes of input as wait for the driver. More are not taken: whoever types waits.
const INPUT_MAX: usize = 4096;

/// The line. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Line(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    output: Output,
    input: Mutex<VecDeque<u8>>,
    /// Signalled when there is input.
    typed: EventFd,
    /// `cols` and `rows` of struct virtio_console_config, as one little-endian number, so that they change together.
    size: AtomicU32,
    generation: AtomicU8,
    config_changed: Mutex<Interrupt>,
}

impl Line {
    /// A line that shows what is written to it by `output`; its terminal's size is not known.
    ///
    /// # Errors
    /// When there is no eventfd to be had.
    pub fn new(output: Output) -> io::Result<Self> {
        Ok(Line(Arc::new(Shared {
            output,
            input: Mutex::default(),
            typed: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            size: AtomicU32::new(0),
            generation: AtomicU8::new(0),
            config_changed: Mutex::default(),
        })))
    }

    /// Gives the guest input. What there is no room for stays behind: the rest of `input` is returned.
    pub fn feed<'i>(&self, input: &'i [u8]) -> &'i [u8] {
        let mut waiting = self.input();
        let room = INPUT_MAX.saturating_sub(waiting.len()).min(input.len());
        let (now, later) = input.split_at_checked(room).unwrap_or((&[], input));
        waiting.extend(now);
        drop(waiting);
        // The only failure is a counter that is full, and then the event is there anyway.
        let _ = self.0.typed.write(1);
        later
    }

    /// What was typed for a guest that is no more is not for the next.
    pub fn forget_input(&self) {
        self.input().clear();
    }

    /// The terminal is so large now. The driver is told, if there is one.
    pub fn resize(&self, size: Size) {
        let packed = u32::from(size.rows) << 16 | u32::from(size.columns);
        if self.0.size.swap(packed, Ordering::SeqCst) == packed {
            return;
        }
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.interrupt(|config_changed| config_changed.trigger());
    }

    /// The configuration space: cols, rows (virtio 1.2, 5.3.4).
    pub(super) fn space(&self) -> [u8; 4] {
        self.0.size.load(Ordering::SeqCst).to_le_bytes()
    }

    /// Which state of it that is.
    pub(super) fn generation(&self) -> u8 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// A driver is there, which wants to be told of changes. Linux looks at the size only when it is told of one, so a size that was there
    /// before is news.
    pub(super) fn connect(&self, config_changed: Interrupt) {
        self.interrupt(|place| {
            *place = config_changed;
            if self.0.size.load(Ordering::SeqCst) != 0 {
                place.trigger();
            }
        });
    }

    /// The driver is gone.
    pub(super) fn disconnect(&self) {
        self.interrupt(|place| *place = Interrupt::none());
    }

    /// Signalled when there is input.
    pub(super) fn typed(&self) -> &EventFd {
        &self.0.typed
    }

    /// Where output goes.
    pub(super) fn output(&self) -> &Output {
        &self.0.output
    }

    /// Whether nothing waits for the driver.
    pub(super) fn is_silent(&self) -> bool {
        self.input().is_empty()
    }

    /// Takes up to `max` bytes of what waits for the driver.
    pub(crate) fn take(&self, max: usize) -> Vec<u8> {
        let mut waiting = self.input();
        let count = waiting.len().min(max);
        waiting.drain(..count).collect()
    }

    fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self, with: impl FnOnce(&mut Interrupt)) {
        let lock = self.0.config_changed.lock();
        with(&mut lock.unwrap_or_else(PoisonError::into_inner));
    }
}
