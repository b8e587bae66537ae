//! pvpanic: a byte by which a guest's kernel says that it panicked (QEMU's `docs/specs/pvpanic.rst`; Linux finds it by ACPI).

use crate::bus;
use crate::control::EndOfLife;
use crate::vm::Outcome;

/// The event that is known here, in the byte that is read as well as in the one that is written: the kernel panicked. The other one,
/// that a crash kernel takes over, ends nothing and is not offered.
const PANICKED: u8 = 1;

/// The device.
pub struct PvPanic(EndOfLife);

impl PvPanic {
    /// Tells the VM's controller when the guest panics.
    pub fn new(end: EndOfLife) -> Self {
        PvPanic(end)
    }
}

impl bus::Device for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.0.tell(Outcome::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Device;
    use crate::control::Message;
    use std::sync::mpsc;

    #[test]
    fn only_a_panic_ends_the_guest() {
        let (sender, messages) = mpsc::channel();
        let device = PvPanic::new(EndOfLife::new(sender, 7));
        let mut offered = [0xff];
        device.read(0, &mut offered);
        assert_eq!(offered, [PANICKED]);
        device.write(0, &[2]);
        device.write(0, &[]);
        assert!(messages.try_recv().is_err());
        device.write(0, &[3]);
        let message = messages.try_recv();
        assert!(
            matches!(message, Ok(Message::GuestEnded(7, Outcome::Panicked))),
            "{message:?}"
        );
    }
}
