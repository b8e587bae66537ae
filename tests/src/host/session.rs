//! One run of a virtual host, seen from outside: start QEMU, pass the streams on, watch until it is over.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::channel::{Job, Port, Report};
use super::emulator::Emulator;
use super::kernel::Kernel;
use super::{Machine, Outcome, devices, initrd, qemu};
use crate::progress::step;

/// The virtual host comes up in a few seconds; this is for a machine that does ten other things.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// A virtual host that does not come up is started again: on a machine that is very busy, an emulated kernel's boot can go wrong.
const BOOT_ATTEMPTS: u32 = 3;
/// A host that sends no heartbeat for so long hangs.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// How long QEMU may take to end once it was told to.
const QEMU_END_LIMIT: Duration = Duration::from_secs(10);
/// How much of the console is shown when the host failed.
const CONSOLE_TAIL_LINES: usize = 40;

/// Runs `command` in a virtual host made for it, until it ends, or `limit` has passed since the start.
pub(super) fn run(
    machine: &Machine,
    emulator: &Emulator,
    kernel: &Kernel,
    command: &[OsString],
    limit: Option<Duration>,
) -> Result<Outcome> {
    let directory = tempfile::Builder::new()
        .prefix("orlop-host-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let run = directory.path();
    let job = Job {
        command: command.to_vec(),
        directory: std::env::current_dir().context("where am I?")?,
        environment: std::env::vars_os().collect(),
        modules: kernel.modules.clone(),
    };
    initrd::write(&qemu::initrd(run), kernel, &job)?;
    if machine.passthrough {
        devices::make(run).context("cannot make the virtual host's disks")?;
    }
    let signals = watched_signals();
    let inherited_mask = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut attempt = 1;
    let outcome = loop {
        let outcome = Session::start(machine, emulator, kernel, run, &inherited_mask)
            .and_then(|session| session.watch(&signals, limit, run));
        match &outcome {
            Ok(Outcome::HostFailed { was_up, reason, .. })
                if !was_up && attempt < BOOT_ATTEMPTS =>
            {
                step(format!("starting the virtual host again: {reason}"));
                attempt += 1;
            }
            _ => break outcome,
        }
    };
    // After an interruption the signals stay blocked: a second one would kill this process before it has cleaned up.
    if !matches!(outcome, Ok(Outcome::Interrupted(_))) {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&inherited_mask), None)?;
    }
    outcome
}

/// The signals that end the virtual host with the testbed.
fn watched_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}

struct Session {
    qemu: Child,
    ended: OwnedFd,
    /// Taken when the host is up: what is read of standard input before is lost to another attempt.
    input: Option<UnixStream>,
    reports: UnixStream,
    pumps: Vec<JoinHandle<()>>,
    /// Readable when a pump has ended.
    pump_ended: UnixStream,
}

impl Session {
    fn start(
        machine: &Machine,
        emulator: &Emulator,
        kernel: &Kernel,
        run: &Path,
        mask: &SigSet,
    ) -> Result<Self> {
        let listen = |port| {
            let socket = qemu::socket(run, port);
            // That of an earlier attempt.
            let _ = fs::remove_file(&socket);
            UnixListener::bind(socket)
        };
        let listeners = (
            listen(Port::Input)?,
            listen(Port::Output)?,
            listen(Port::Error)?,
            listen(Port::Report)?,
        );
        let mut command = emulator.command();
        command.args(qemu::arguments(machine, kernel, run));
        let mut qemu = spawn(command, run, *mask)?;
        let ended = pidfd(&qemu)?;
        // QEMU connects as it starts, or it ends and says why.
        let mut accept = |listener: &UnixListener| accept(listener, &mut qemu, &ended, run);
        let (input, output) = (accept(&listeners.0)?, accept(&listeners.1)?);
        let (error, reports) = (accept(&listeners.2)?, accept(&listeners.3)?);
        reports.set_nonblocking(true)?;

        let (pump_ended, notice) = UnixStream::pair()?;
        let (output_notice, error_notice) = (notice.try_clone()?, notice);
        let pumps = vec![
            thread::spawn(move || pass_on(output, io::stdout(), output_notice)),
            thread::spawn(move || pass_on(error, io::stderr(), error_notice)),
        ];
        Ok(Self {
            qemu,
            ended,
            input: Some(input),
            reports,
            pumps,
            pump_ended,
        })
    }

    fn watch(mut self, signals: &SignalFd, limit: Option<Duration>, run: &Path) -> Result<Outcome> {
        let outcome = self.wait_for_outcome(signals, limit, run);
        self.end_qemu();
        for pump in self.pumps {
            // A pump that panicked has said so itself.
            let _ = pump.join();
        }
        outcome
    }

    fn wait_for_outcome(
        &mut self,
        signals: &SignalFd,
        limit: Option<Duration>,
        run: &Path,
    ) -> Result<Outcome> {
        let start = Instant::now();
        let mut last_report = None;
        let mut lines = Vec::new();
        let failed = |reason: String, was_up: bool| Outcome::HostFailed {
            reason,
            was_up,
            console: console_tail(run),
        };
        loop {
            let silence_end = last_report.map_or(start + BOOT_LIMIT, |at| at + SILENCE_LIMIT);
            let end = limit.map_or(silence_end, |limit| silence_end.min(start + limit));
            let ready = self.poll(signals, end)?;

            if let Some(signal) = signals.read_signal()? {
                let number = i32::try_from(signal.ssi_signo).unwrap_or(libc::SIGTERM);
                return Ok(Outcome::Interrupted(number));
            }
            for report in self.read_reports(&mut lines)? {
                last_report = Some(Instant::now());
                match report {
                    Report::Up => {
                        if let Some(input) = self.input.take() {
                            thread::spawn(move || forward_input(input));
                        }
                    }
                    Report::Alive => {}
                    Report::Failed(reason) => return Ok(failed(reason, last_report.is_some())),
                    Report::Ended(status) => return Ok(Outcome::Ended(status)),
                }
            }
            if ready.qemu_ended || (ready.pump_ended && self.qemu_ends_soon()?) {
                let said = fs::read_to_string(run.join("qemu.log")).unwrap_or_default();
                let reason = match said.trim() {
                    "" => "it ended without a report, as after a kernel panic".into(),
                    said => format!("QEMU ended: {said}"),
                };
                return Ok(failed(reason, last_report.is_some()));
            }
            if ready.pump_ended {
                return Ok(Outcome::Interrupted(libc::SIGPIPE));
            }
            match limit {
                Some(limit) if start.elapsed() >= limit => return Ok(Outcome::TimeLimit(limit)),
                _ if Instant::now() < silence_end => {}
                _ if last_report.is_none() => {
                    let seconds = BOOT_LIMIT.as_secs();
                    return Ok(failed(
                        format!("it did not come up within {seconds} s"),
                        false,
                    ));
                }
                _ => {
                    let seconds = SILENCE_LIMIT.as_secs();
                    return Ok(failed(
                        format!("it hangs: no heartbeat for {seconds} s"),
                        true,
                    ));
                }
            }
        }
    }

    fn poll(&self, signals: &SignalFd, end: Instant) -> Result<Ready> {
        let event = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut events = [
            event(self.ended.as_fd()),
            event(self.pump_ended.as_fd()),
            event(self.reports.as_fd()),
            event(signals.as_fd()),
        ];
        let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut events, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the virtual host"),
        }
        Ok(Ready {
            qemu_ended: events[0].any().unwrap_or(false),
            pump_ended: events[1].any().unwrap_or(false),
        })
    }

    /// Tells a stream that ended because QEMU ends from one whose reader has gone.
    fn qemu_ends_soon(&self) -> Result<bool> {
        let mut events = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut events, PollTimeout::from(1000_u16))? > 0)
    }

    /// The reports that have arrived whole; `lines` keeps the beginning of the next one.
    fn read_reports(&mut self, lines: &mut Vec<u8>) -> Result<Vec<Report>> {
        let mut buffer = [0; 4096];
        loop {
            match self.reports.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => lines.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The socket is reset when QEMU is killed; its end is noticed on its own.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error).context("cannot read the host's reports"),
            }
        }
        let mut reports = Vec::new();
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            reports.push(serde_json::from_slice(&line).context("an unknown report")?);
        }
        Ok(reports)
    }

    /// Ends QEMU, politely first: it may hold unwritten parts of a disk image.
    fn end_qemu(&mut self) {
        let process = Pid::from_raw(self.qemu.id().cast_signed());
        let end = Instant::now() + QEMU_END_LIMIT;
        let _ = kill(process, Signal::SIGTERM);
        while Instant::now() < end {
            match self.qemu.try_wait() {
                Ok(Some(_)) | Err(_) => return,
                Ok(None) => thread::sleep(Duration::from_millis(5)),
            }
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

struct Ready {
    qemu_ended: bool,
    pump_ended: bool,
}

fn spawn(mut command: Command, run: &Path, mask: SigSet) -> Result<Child> {
    let log = File::create(run.join("qemu.log"))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for the testbed, which then ends QEMU.
        .process_group(0);
    // SAFETY: both calls are async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
            Ok(())
        });
    }
    command.spawn().with_context(|| {
        format!(
            "cannot start {}; install Debian's qemu-system-x86",
            command.get_program().display()
        )
    })
}

fn pidfd(process: &Child) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id(), 0) };
    let fd = i32::try_from(fd)?;
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot watch QEMU");
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn accept(
    listener: &UnixListener,
    qemu: &mut Child,
    ended: &OwnedFd,
    run: &Path,
) -> Result<UnixStream> {
    let mut events = [
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        PollFd::new(ended.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut events, PollTimeout::NONE)?;
    if events[0].any() == Some(true) {
        return Ok(listener.accept()?.0);
    }
    qemu.wait()?;
    let said = fs::read_to_string(run.join("qemu.log")).unwrap_or_default();
    anyhow::bail!("QEMU did not start: {}", said.trim());
}

/// Passes standard input on. A terminal is not forwarded: its line editing would happen on the wrong side.
fn forward_input(mut port: UnixStream) {
    // The inside waits for this byte: until it is there, it cannot tell "nothing yet" from the end.
    if port.write_all(&[super::inside::INPUT_BEGINS]).is_err() {
        return;
    }
    let input = io::stdin();
    if !input.is_terminal() {
        // An error is that of a command that reads no further, or of a host that has ended.
        let _ = io::copy(&mut input.lock(), &mut port);
    }
    // Half-closed, not closed: QEMU would drop what it has not yet read.
    let _ = port.shutdown(Shutdown::Write);
    std::mem::forget(port);
}

/// Passes a stream on, unbuffered, until it ends or its reader has gone.
fn pass_on(mut port: UnixStream, to: impl AsRawFd, mut notice: UnixStream) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match port.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if write_all(&to, &buffer[..count]).is_err() {
                    break;
                }
            }
        }
    }
    // The watcher may be gone already.
    let _ = notice.write_all(&[0]);
}

/// Writes past the standard library's buffers, which would hold back a line that is not yet whole.
fn write_all(to: &impl AsRawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a live slice.
        let count = unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(count) => bytes = &bytes[count..],
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// The end of the console, for people.
fn console_tail(run: &Path) -> String {
    let console = fs::read(qemu::console(run)).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n")
}
