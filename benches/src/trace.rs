//! The host kernel's own clockwork: when a program was executed, when a vCPU first entered its guest, and when the guest said that user
//! space is reached. The VMMs take no part in it, so it is the same for all of them.
//!
//! The guest's word is the instruction CPUID with a leaf that nobody else asks for ([`boot_mark`]): it leaves the guest on
//! every x86 processor, whatever the VMM, and never reaches user space.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use orlop_guest_images::boot_mark;

const TRACEFS: &str = "/sys/kernel/tracing";

/// The moments of one start, in seconds of the trace's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// The VMM's program was executed.
    pub exec: f64,
    /// A vCPU entered the guest for the first time.
    pub first_entry: f64,
    /// The guest's process 1 ran.
    pub init: f64,
}

/// The marks of many guests that are started at once, crowd after crowd.
pub struct Marks {
    // Closed before the trace is removed.
    lines: BufReader<File>,
    _trace: Instance,
}

impl Marks {
    /// Begins to trace.
    ///
    /// # Errors
    /// As [`Trace::begin`].
    pub fn begin() -> Result<Self> {
        let trace = Instance::of_marks("orlop-bench-marks")?;
        trace.write("events/sched/sched_process_exec/enable", "1")?;
        Ok(Self {
            lines: trace.lines()?,
            _trace: trace,
        })
    }

    /// The time of the next guest's mark, in seconds of the trace's clock.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<f64> {
        let mut time = None;
        read_until(&mut self.lines, limit, |line| {
            if line.contains(" kvm_cpuid:") {
                time = time_of(line);
            }
            time.is_some()
        })?;
        time.context("the trace's line of the mark has no time")
    }

    /// Seconds from the execution of process `first`'s program until so many guests have given their mark.
    ///
    /// # Errors
    /// When they do not within `limit`.
    pub fn of(&mut self, first: u32, guests: usize, limit: Duration) -> Result<f64> {
        let first = format!(" pid={first} ");
        let mut exec = None;
        let mut marks = 0;
        let mut last = 0.0;
        read_until(&mut self.lines, limit, |line| {
            if line.contains("sched_process_exec:") && line.contains(&first) {
                exec = time_of(line);
            } else if exec.is_some() && line.contains(" kvm_cpuid:") {
                // What comes before is of guests that were given up.
                marks += 1;
                last = time_of(line).unwrap_or_default();
            }
            marks == guests
        })?;
        Ok(last - exec.context("the first VMM's execution is not in the trace")?)
    }
}

/// Traces of one start. Two: the first moments must not be overwritten by what follows, and the last one is waited for.
pub struct Trace {
    beginning: Instance,
    mark: Instance,
}

impl Trace {
    /// Begins to trace.
    ///
    /// # Errors
    /// When the kernel has no such events, or this is not root.
    pub fn begin() -> Result<Self> {
        let mark = Instance::of_marks("orlop-bench-mark")?;
        let beginning = Instance::make("orlop-bench-beginning")?;
        beginning.write("options/overwrite", "0")?;
        beginning.write("events/sched/sched_process_exec/enable", "1")?;
        beginning.write("events/kvm/kvm_entry/enable", "1")?;
        Ok(Self { beginning, mark })
    }

    /// Waits until the guest of process `vmm` says that user space is reached.
    ///
    /// # Errors
    /// When it does not within `limit`, or a moment before that was not seen.
    pub fn finish(self, vmm: u32, limit: Duration) -> Result<Moments> {
        let line = self.mark.wait(limit)?;
        let init = time_of(&line).context("the trace's line of the mark has no time")?;
        self.beginning.write("tracing_on", "0")?;
        let text = self.beginning.read("trace")?;
        let exec = format!(" pid={vmm} ");
        let mut lines = text.lines();
        let exec = lines
            .find(|line| line.contains("sched_process_exec:") && line.contains(&exec))
            .and_then(time_of)
            .context("the VMM's execution is not in the trace")?;
        let first_entry = lines
            .find(|line| line.contains(" kvm_entry:"))
            .and_then(time_of)
            .context("no entry of a guest is in the trace")?;
        Ok(Moments {
            exec,
            first_entry,
            init,
        })
    }
}

/// The filter of `kvm_cpuid` that lets the guest's mark through.
pub fn is_mark() -> String {
    format!("function == {}", boot_mark::LEAF)
}

/// A trace of its own in the kernel, which goes when this is dropped.
pub struct Instance {
    path: PathBuf,
}

impl Instance {
    /// Makes it, or makes it anew.
    ///
    /// # Errors
    /// When there is no tracefs, or this is not root.
    pub fn make(name: &str) -> Result<Self> {
        if !Path::new(TRACEFS).join("events").is_dir() {
            bail!("{TRACEFS} is not mounted; mount -t tracefs tracefs {TRACEFS}");
        }
        let path = Path::new(TRACEFS).join("instances").join(name);
        // One that a killed run has left.
        let _ = fs::remove_dir(&path);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let instance = Self { path };
        instance.write("trace_clock", "mono")?;
        Ok(instance)
    }

    /// One in which guests' marks are.
    fn of_marks(name: &str) -> Result<Self> {
        let trace = Self::make(name)?;
        trace.write("events/kvm/kvm_cpuid/filter", &is_mark())?;
        trace.write("events/kvm/kvm_cpuid/enable", "1")?;
        Ok(trace)
    }

    /// Writes to one of its files.
    ///
    /// # Errors
    /// When the kernel has no such file, or takes no such value.
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value)
            .with_context(|| format!("cannot write {value:?} to {}", path.display()))
    }

    /// Reads one of its files.
    ///
    /// # Errors
    /// When the kernel has no such file.
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The first event that comes.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn wait(&self, limit: Duration) -> Result<String> {
        let mut first = String::new();
        read_until(&mut self.lines()?, limit, |line| {
            first.push_str(line);
            true
        })?;
        Ok(first)
    }

    /// The lines of its events as they come.
    fn lines(&self) -> Result<BufReader<File>> {
        Ok(BufReader::new(File::open(self.path.join("trace_pipe"))?))
    }
}

/// Has `seen` look at each line as it comes, until it says that it has seen enough.
fn read_until(
    lines: &mut BufReader<File>,
    limit: Duration,
    mut seen: impl FnMut(&str) -> bool,
) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(lines.get_ref().as_fd(), PollFlags::POLLIN)];
        if !lines.buffer().is_empty() || poll(&mut polled, timeout)? > 0 {
            let mut line = String::new();
            lines.read_line(&mut line)?;
            if seen(&line) {
                return Ok(());
            }
        }
        if left.is_zero() {
            bail!("the guest gave no mark in {} s", limit.as_secs());
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The events go on until they are switched off; then there is nobody left to tell.
        let _ = self.write("tracing_on", "0");
        let _ = self.write("events/enable", "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// The time in `vcpu0-71 [000] d.... 12.345678: kvm_entry: vcpu 0`.
fn time_of(line: &str) -> Option<f64> {
    line.split_whitespace()
        .filter_map(|word| word.strip_suffix(':'))
        // A task may be called `vcpu 0:`.
        .filter(|word| word.contains('.'))
        .find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_time_is_found_whatever_the_task_is_called() {
        let line = " vcpu 0: x-71      [000] d.... 12.345678: kvm_entry: vcpu 0, rip 0xfff0";
        assert_eq!(time_of(line), Some(12.345678));
        assert_eq!(time_of("# tracer: nop"), None);
    }
}
