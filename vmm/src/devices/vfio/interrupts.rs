//! How a device's interrupts reach its guest: by the line, by messages, or by messages in a table. VFIO signals an eventfd for each, and
//! KVM takes that as the interrupt; this process takes no part.
//!
//! ```text
//!            ┌─────────────┐  the guest enables one kind, which ends the other
//!   Nothing ─┤ Line        │
//!            │ Msi(count)  │
//!            │ Msix(count) ├─ a driver unmasks a vector behind the last: all are set anew
//!            └─────────────┘
//! ```
//!
//! A table has up to 2048 vectors, and the host few to give, so VFIO is asked for those that the guest's driver has written messages for.
//! Masks are ours alone: KVM lets go of a masked vector's eventfd, which keeps what is signalled meanwhile.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;
use vmm_sys_util::eventfd::EventFd;

use super::config_space::{ConfigSpace, Wanted};
use super::ioctl::DeviceFile;
use crate::irq::{Lines, Msi, MsiMessage};
use crate::pci::msix::Msix;
use crate::pci::vectors::Vectors;

/// A function's mask in MSI-X' control word.
const MSIX_MASKED: u16 = 1 << 14;

/// A device's interrupts.
pub struct Interrupts {
    file: Arc<DeviceFile>,
    /// Where there are lines.
    lines: Option<Arc<dyn Lines>>,
    /// Where its line ends.
    gsi: Option<u32>,
    line: Line,
    messages: Vectors,
    table: Option<Msix>,
    active: Active,
}

/// What VFIO was asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Active {
    Nothing,
    Line,
    Msi(usize),
    Msix(usize),
}

impl Active {
    /// VFIO's number of the kind.
    fn index(self) -> Option<u32> {
        match self {
            Active::Nothing => None,
            Active::Line => Some(sys::VFIO_PCI_INTX_IRQ_INDEX),
            Active::Msi(_) => Some(sys::VFIO_PCI_MSI_IRQ_INDEX),
            Active::Msix(_) => Some(sys::VFIO_PCI_MSIX_IRQ_INDEX),
        }
    }
}

/// The line's events.
struct Line {
    raised: EventFd,
    served: EventFd,
}

impl Interrupts {
    /// Those of a device with this configuration space; none is active.
    ///
    /// # Errors
    /// When an eventfd cannot be had.
    pub fn new(
        file: Arc<DeviceFile>,
        config: &ConfigSpace,
        msi: Arc<dyn Msi>,
        lines: Option<Arc<dyn Lines>>,
    ) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let table = config.table();
        let table = table.map(|table| Msix::new(msi.clone(), table.count));
        Ok(Interrupts {
            file,
            lines,
            gsi: None,
            line: Line {
                raised: event()?,
                served: event()?,
            },
            messages: Vectors::new(msi, config.messages())?,
            table: table.transpose()?,
            active: Active::Nothing,
        })
    }

    /// Its line ends here.
    pub fn connect(&mut self, gsi: u32) {
        self.gsi = Some(gsi);
    }

    /// The table, if it has one.
    pub fn table(&mut self) -> Option<&mut Msix> {
        self.table.as_mut()
    }

    /// How many interrupts the host has set up.
    pub fn count(&self) -> usize {
        match self.active {
            Active::Nothing => 0,
            Active::Line => 1,
            Active::Msi(count) | Active::Msix(count) => count,
        }
    }

    /// Has the device interrupt its guest as that wants it now.
    pub fn follow(&mut self, config: &ConfigSpace, wanted: Wanted) {
        let control = match wanted {
            Wanted::Msix(control) => control,
            _ => 0,
        };
        if let Some(table) = &mut self.table {
            table.control(control);
        }
        let message = config.msi_message().filter(|_| wanted == Wanted::Msi);
        let target = match (wanted, message) {
            // Nothing is asked of the host while all is masked: the driver is about to say which vectors it wants.
            (Wanted::Msix(control), _) if control & MSIX_MASKED != 0 => match self.active {
                Active::Msix(_) => self.active,
                _ => Active::Nothing,
            },
            (Wanted::Msix(_), _) => {
                let used = self.table.as_ref().map_or(0, Msix::used).max(1);
                match self.active {
                    Active::Msix(count) if count >= used => self.active,
                    _ => Active::Msix(used),
                }
            }
            (Wanted::Msi, Some((_, _, count, _))) => Active::Msi(count),
            (Wanted::Line, _) if self.gsi.is_some() => Active::Line,
            _ => Active::Nothing,
        };
        self.set_messages(message);
        if self.active != target {
            self.deactivate();
            if let Err(error) = self.activate(target) {
                log::warn!("a device of the host's has no interrupts ({target:?}): {error}");
            }
        }
    }

    fn set_messages(&mut self, message: Option<(u64, u16, usize, u32)>) {
        let Some((address, data, count, masked)) = message else {
            self.messages.silence();
            return;
        };
        // The lowest bits of the data are the number of the message (PCI Local Bus 3.0, 6.8.3.4).
        let data = usize::from(data) & !(count - 1);
        for index in 0..self.messages.events().count() {
            let is_open = index < count && masked & (1 << index) == 0;
            let message = MsiMessage {
                address,
                data: (data | index) as u32,
            };
            self.messages.set(index, is_open.then_some(message));
        }
    }

    fn activate(&mut self, target: Active) -> io::Result<()> {
        match target {
            Active::Nothing => {}
            Active::Line => self.raise()?,
            Active::Msi(count) => {
                let events = descriptors(self.messages.events(), count);
                self.file.trigger(sys::VFIO_PCI_MSI_IRQ_INDEX, &events)?;
            }
            Active::Msix(count) => {
                let events = self.table.iter().flat_map(Msix::events);
                let events = descriptors(events, count);
                self.file.trigger(sys::VFIO_PCI_MSIX_IRQ_INDEX, &events)?;
            }
        }
        self.active = target;
        Ok(())
    }

    /// Wires the line: VFIO masks it when it is raised, and lets it through again when the guest has served it.
    fn raise(&mut self) -> io::Result<()> {
        let (Some(lines), Some(gsi)) = (&self.lines, self.gsi) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let Line { raised, served } = &self.line;
        lines
            .connect(raised, served, gsi)
            .map_err(io::Error::other)?;
        let line = sys::VFIO_PCI_INTX_IRQ_INDEX;
        let wired = self.file.trigger(line, &[raised.as_raw_fd()]);
        let wired = wired.and_then(|()| self.file.unmask_by(served.as_raw_fd()));
        if wired.is_err() {
            // It may not be there, of which there is nothing more to say.
            let _ = self.file.trigger(line, &[]);
            let _ = lines.disconnect(raised, gsi);
        }
        wired
    }

    fn deactivate(&mut self) {
        let Some(index) = self.active.index() else {
            return;
        };
        if let Err(error) = self.file.trigger(index, &[]) {
            log::warn!("a device of the host's keeps its interrupts: {error}");
        }
        if let (Active::Line, Some(lines), Some(gsi)) = (self.active, &self.lines, self.gsi)
            && let Err(error) = lines.disconnect(&self.line.raised, gsi)
        {
            log::warn!("{error}");
        }
        self.active = Active::Nothing;
    }

    /// Ends all of them.
    pub fn stop(&mut self) {
        self.deactivate();
        if let Some(table) = &mut self.table {
            table.control(0);
        }
        self.messages.silence();
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.stop();
    }
}

fn descriptors<'e>(events: impl Iterator<Item = &'e EventFd>, count: usize) -> Vec<RawFd> {
    events.take(count).map(AsRawFd::as_raw_fd).collect()
}
