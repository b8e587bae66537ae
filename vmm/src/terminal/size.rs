//! How large the terminal of a guest's user is.

use std::io;
use std::thread;

use crate::signals::Signals;

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Across.
    pub columns: u16,
    /// Down.
    pub rows: u16,
}

impl Size {
    /// That of standard input, if it is a terminal and knows.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCGWINSZ writes one `winsize`, which lives through the call.
        let asked = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, &raw mut size) };
        let size = Size {
            columns: size.ws_col,
            rows: size.ws_row,
        };
        (asked == 0 && size != Size::default()).then_some(size)
    }

    /// Tells the size of standard input now and whenever it changes, until `tell` says `false`. To be called while there is one thread.
    ///
    /// # Errors
    /// When there is no other to be had.
    pub fn follow(mut tell: impl FnMut(Size) -> bool + Send + 'static) -> io::Result<()> {
        let changes = Signals::block(&[libc::SIGWINCH])?;
        let follow = move || {
            let mut told = Size::default();
            loop {
                let now = Size::of_user().unwrap_or(told);
                if now != told && !tell(now) {
                    return;
                }
                told = now;
                if changes.wait().is_none() {
                    return;
                }
            }
        };
        thread::Builder::new().name("size".into()).spawn(follow)?;
        Ok(())
    }
}
