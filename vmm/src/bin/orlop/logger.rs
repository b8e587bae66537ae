//! Log lines on stderr, for people and for the shim, which keeps a VM's.

use std::io::Write as _;

use log::{LevelFilter, Metadata, Record};

/// The variable that asks for more or less than warnings: `error`, `info`, `debug`, `trace` or `off`.
const VARIABLE: &str = "ORLOP_LOG";

struct Stderr;

/// Sends the `log` crate's messages to stderr.
pub fn install() {
    let level = std::env::var(VARIABLE)
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Warn);
    // It can only fail when there is a logger already, and this is called once.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

impl log::Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        // Nobody is left to hear that stderr is closed.
        let _ = writeln!(std::io::stderr(), "orlop: {level}: {}", record.args());
    }

    fn flush(&self) {}
}
