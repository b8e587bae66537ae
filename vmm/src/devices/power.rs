//! The ways out of a guest: ACPI's sleep and reset registers (ACPI 6.5, 4.8.3.7 and 4.8.3.6), and the keyboard controller's reset line,
//! which `reboot=k` uses.

use crate::bus;
use crate::control::EndOfLife;
use crate::vm::Outcome;

/// Sleep control: bit 5 starts the sleep of the type in bits 4:2.
pub const SLEEP_CONTROL: u16 = 0;
/// Sleep status: bit 7 says that the machine woke. It never did.
pub const SLEEP_STATUS: u16 = 1;
/// Writing [`RESET_VALUE`] resets the machine.
pub const RESET: u16 = 2;
/// What resets the machine.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, as the DSDT's `_S5` says.
pub const SLEEP_TYPE_OFF: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;

/// The ACPI registers.
pub struct Power(EndOfLife);

impl Power {
    /// Tells the VM's controller what the guest asks for.
    pub fn new(end: EndOfLife) -> Self {
        Power(end)
    }
}

impl bus::Device for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let sleep = SLEEP_ENABLE | SLEEP_TYPE_OFF << 2;
        let outcome = match (u16::try_from(offset), data) {
            (Ok(SLEEP_CONTROL), [value, ..]) if *value == sleep => Outcome::PoweredOff,
            (Ok(RESET), [RESET_VALUE, ..]) => Outcome::Reset,
            _ => return,
        };
        self.0.tell(outcome);
    }
}

/// An i8042 without keyboard or mouse.
pub struct I8042(EndOfLife);

impl I8042 {
    /// Tells the VM's controller when the guest pulls the reset line.
    pub fn new(end: EndOfLife) -> Self {
        I8042(end)
    }
}

impl bus::Device for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status: no input waits, and the controller takes commands.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        /// The command port, behind the data port at 0x60.
        const COMMAND: u64 = 4;
        /// Pulse output line 0, which is the processor's reset.
        const PULSE_RESET: u8 = 0xfe;
        if (offset, data.first()) == (COMMAND, Some(&PULSE_RESET)) {
            self.0.tell(Outcome::Reset);
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
    fn only_the_right_writes_end_the_vm() {
        let (sender, receiver) = mpsc::channel();
        let end = EndOfLife::new(sender, 0);
        let power = Power::new(end.clone());
        let keyboard = I8042::new(end);
        power.write(0, &[0x20]);
        power.write(0, &[]);
        power.write(2, &[2]);
        power.write(9, &[0x34]);
        keyboard.write(0, &[0xfe]);
        keyboard.write(4, &[0xd1]);
        assert!(receiver.try_recv().is_err());
        power.write(0, &[0x34]);
        power.write(2, &[1]);
        keyboard.write(4, &[0xfe]);
        let ended: Vec<_> = receiver.try_iter().collect();
        assert!(matches!(
            ended[..],
            [
                Message::GuestEnded(0, Outcome::PoweredOff),
                Message::GuestEnded(0, Outcome::Reset),
                Message::GuestEnded(0, Outcome::Reset)
            ]
        ));
    }
}
