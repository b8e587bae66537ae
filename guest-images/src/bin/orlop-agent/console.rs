//! What the agent says, and where: the guest's kernel log, and in the worst case its console.
//!
//! A line in the kernel log appears on the console when its level is below the kernel's (`quiet` lets only warnings and worse
//! through), so the agent need not know whether anybody wants to read it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Metadata, Record};

struct KernelLog(OnceLock<File>);

static KERNEL_LOG: KernelLog = KernelLog(OnceLock::new());

/// Sends the `log` crate's messages to the kernel log, from `level` up. Needs /dev/kmsg.
pub fn log_to_kernel(level: LevelFilter) {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = KERNEL_LOG.0.set(file);
    }
    if log::set_logger(&KERNEL_LOG).is_ok() {
        log::set_max_level(level);
    }
}

impl log::Log for KernelLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // The levels of syslog(3).
        let level = match record.level() {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        // One write is one record.
        let line = format!("<{level}>orlop-agent: {}\n", record.args());
        match self.0.get() {
            Some(mut file) => drop(file.write_all(line.as_bytes())),
            None => eprint!("{}", line.get(3..).unwrap_or_default()),
        }
    }

    fn flush(&self) {}
}

/// Says `message` on the console itself, whatever its log level is. Falls back to stderr, which the kernel opened there.
pub fn say(message: &str) {
    let line = format!("orlop-agent: {message}\n");
    let said = OpenOptions::new()
        .write(true)
        .open("/dev/console")
        .and_then(|mut console| console.write_all(line.as_bytes()));
    if said.is_err() {
        eprint!("{line}");
    }
}

/// Sends the `log` crate's warnings to stderr, outside of a guest.
pub fn log_to_stderr() {
    if log::set_logger(&KERNEL_LOG).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
