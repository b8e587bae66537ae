//! Log lines on stderr, for people and for the shim, which keeps a VM's.
//!
//! Some of them a guest can cause, as often as it likes: one that breaks a device's rules and resets it, over and over, has a line each
//! time. So each place in the program has a [`limit`] of warnings and errors, whichever crate it is in. Who asks for more than
//! warnings gets all of that.

mod limit;

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::{Level, LevelFilter, Metadata, Record};

use limit::{Limit, Place, Verdict};

/// The variable that asks for more or less than warnings: `error`, `info`, `debug`, `trace` or `off`.
const VARIABLE: &str = "ORLOP_LOG";

struct Stderr {
    limit: Mutex<Limit>,
}

/// Sends the `log` crate's messages to stderr.
pub fn install() {
    let level = std::env::var(VARIABLE)
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Warn);
    let logger = Box::leak(Box::new(Stderr {
        limit: Mutex::default(),
    }));
    // It can only fail when there is a logger already, and this is called once.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

impl Stderr {
    /// Whether a line may be said.
    fn ask(&self, record: &Record<'_>) -> Verdict {
        if record.level() > Level::Warn {
            return Verdict::Say;
        }
        let place = Place {
            file: record.file_static().unwrap_or_default(),
            line: record.line().unwrap_or_default(),
        };
        self.limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ask(place, Instant::now())
    }
}

impl log::Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let more = match self.ask(record) {
            Verdict::Say => String::new(),
            Verdict::SayLast => " (more of these will be left out)".into(),
            Verdict::SayAfter(count) => format!(" (and {count} of these were left out)"),
            Verdict::LeaveOut => return,
        };
        let level = record.level().as_str().to_ascii_lowercase();
        // Nobody is left to hear that stderr is closed.
        let _ = writeln!(std::io::stderr(), "orlop: {level}: {}{more}", record.args());
    }

    fn flush(&self) {}
}
