//! What people see while work goes on: one line per step on standard error, each with the time since the start.

use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Prints `what` with the time that has passed since the first step.
pub fn step(what: impl AsRef<str>) {
    let start = START.get_or_init(Instant::now);
    eprintln!("{:7.1} s  {}", start.elapsed().as_secs_f64(), what.as_ref());
}
