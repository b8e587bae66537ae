//! What people see while work goes on: one line per step on standard error, each with the time since the start.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Prints `what` with the time that has passed since the first step.
pub fn step(what: impl AsRef<str>) {
    let start = START.get_or_init(Instant::now);
    let line = format!(
        "{:7.1} s  {}\n",
        start.elapsed().as_secs_f64(),
        what.as_ref()
    );
    // One write, so that lines of two processes never mix. There is nowhere to say that standard error is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
