//! The serial port, for people and for the story that reads along.

use core::fmt::{self, Write};

use crate::ports;

/// COM1's data.
const DATA: u16 = 0x3f8;

/// COM1. The VM's takes a byte at any time, so its state is not looked at.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| ports::write(DATA, byte));
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($what:tt)*) => {{
        use core::fmt::Write as _;
        // The serial port takes everything.
        let _ = writeln!($crate::serial::Serial, $($what)*);
    }};
}
