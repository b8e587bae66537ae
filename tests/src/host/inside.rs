//! The first process inside a virtual host, once this machine's root is `/`: it makes a host of it and runs the command.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::{HEARTBEAT_SECONDS, Job, Port, Report};
use super::outcome::{EXIT_NOT_RUN, shell_status};

mod prepare;

/// The byte that precedes standard input.
pub(super) const INPUT_BEGINS: u8 = b'<';

/// How long the ports may take to appear.
const PORT_LIMIT: Duration = Duration::from_secs(60);

/// Runs as process 1 and powers the virtual host off at the end.
///
/// # Errors
/// When this process is not the first one of a virtual host.
pub fn main() -> Result<ExitCode> {
    if std::process::id() != 1 {
        bail!("this is for the inside of a virtual host; `cargo testbed host -- CMD` starts one");
    }
    let Err(error) = run();
    // Seen on the console, which the outside shows when no report arrives.
    eprintln!("testbed: {error:#}");
    if let Ok(mut reports) = open_port(Port::Report) {
        let _ = report(&mut reports, &Report::Failed(format!("{error:#}")));
    }
    power_off()
}

fn run() -> Result<Infallible> {
    let mut job = Vec::new();
    io::stdin()
        .read_to_end(&mut job)
        .context("cannot read the job")?;
    let job: Job = serde_json::from_slice(&job).context("cannot understand the job")?;
    let mut reports = open_port(Port::Report)?;
    prepare::host(&job)?;
    report(&mut reports, &Report::Up)?;
    let mut heartbeat = reports.try_clone()?;
    thread::spawn(move || {
        // Ends with the port, that is with the host.
        while report(&mut heartbeat, &Report::Alive).is_ok() {
            thread::sleep(Duration::from_secs(HEARTBEAT_SECONDS));
        }
    });
    let status = command(&job)?;
    nix::unistd::sync();
    report(&mut reports, &Report::Ended(status))?;
    power_off()
}

/// Runs the command and passes its streams on; returns its status once its output has been passed on.
fn command(job: &Job) -> Result<u8> {
    let input = open_port(Port::Input)?;
    let output = open_port(Port::Output)?;
    let mut error = open_port(Port::Error)?;
    let (program, arguments) = job.command.split_first().context("no command to run")?;
    let spawned = Command::new(program)
        .args(arguments)
        .current_dir(&job.directory)
        .env_clear()
        .envs(environment(job))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(reason) => {
            writeln!(error, "testbed: cannot run {}: {reason}", program.display())?;
            return Ok(EXIT_NOT_RUN);
        }
    };
    let (child_input, child_output, child_error) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(to) = child_input {
        thread::spawn(move || forward_input(input, to));
    }
    let ended = Arc::new(AtomicBool::new(false));
    let mut pumps = Vec::new();
    if let Some(from) = child_output {
        pumps.push(pass_on(from, output, &ended)?);
    }
    if let Some(from) = child_error {
        pumps.push(pass_on(from, error, &ended)?);
    }
    let status = wait_for(child.id())?;
    ended.store(true, Ordering::SeqCst);
    for pump in pumps {
        let _ = pump.join();
    }
    Ok(shell_status(status))
}

/// The caller's environment, with what differs in here.
fn environment(job: &Job) -> Vec<(OsString, OsString)> {
    let mut environment = job.environment.clone();
    // Runtime directories of the machine outside mean nothing here.
    environment.retain(|(name, _)| name != "XDG_RUNTIME_DIR" && name != "NOTIFY_SOCKET");
    for (name, value) in [
        (super::INSIDE_VARIABLE, OsString::from("1")),
        // On tmpfs: sockets, FIFOs and overlay file systems work there, and it is quick.
        ("TMPDIR", prepare::TEMPORARY.into()),
        // modprobe finds this kernel's modules, which are not installed.
        ("MODPROBE_OPTIONS", prepare::modprobe_options(job)),
    ] {
        environment.retain(|(known, _)| known != name);
        environment.push((name.into(), value));
    }
    environment
}

/// Waits for `child`, and takes the status of every orphan that ends meanwhile, as process 1 must.
fn wait_for(child: u32) -> Result<ExitStatus> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if ended == child.cast_signed() {
            return Ok(ExitStatus::from_raw(status));
        }
        if ended < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(io::Error::last_os_error()).context("cannot wait for the command");
        }
    }
}

fn forward_input(mut port: File, mut to: impl Write) {
    let mut buffer = vec![0; 64 * 1024];
    let mut begun = false;
    loop {
        match port.read(&mut buffer) {
            // No host has connected yet.
            Ok(0) if !begun => thread::sleep(Duration::from_millis(10)),
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let bytes = &buffer[usize::from(!begun)..count];
                begun = true;
                if to.write_all(bytes).is_err() {
                    return;
                }
            }
        }
    }
}

/// Passes a pipe on to a port. When the command has ended, what is left in the pipe still goes through; processes that it left
/// behind with the pipe in hand are not waited for.
fn pass_on(
    from: impl Read + AsFd + Send + 'static,
    port: File,
    ended: &Arc<AtomicBool>,
) -> Result<JoinHandle<()>> {
    let flags = OFlag::from_bits_retain(fcntl(from.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(from.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let ended = Arc::clone(ended);
    Ok(thread::spawn(move || {
        if let Err(error) = copy_until(from, port, &ended) {
            eprintln!("testbed: cannot pass the command's output on: {error}");
        }
    }))
}

fn copy_until(mut from: impl Read + AsFd, mut port: File, ended: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // Looked at before the pipe is: what was written before the end is then surely seen.
        let last_look = ended.load(Ordering::SeqCst);
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => port.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if last_look {
                    return Ok(());
                }
                let mut events = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                poll(&mut events, PollTimeout::from(50_u8))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn report(port: &mut File, report: &Report) -> Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    // One write, so that reports of two threads never mix.
    Ok(port.write_all(&line)?)
}

/// Opens a virtio-serial port by its name, waiting for the kernel to find it.
fn open_port(port: Port) -> Result<File> {
    let end = Instant::now() + PORT_LIMIT;
    loop {
        if let Some(device) = find_port(Path::new("/sys/class/virtio-ports"), port) {
            let device = Path::new("/dev").join(device);
            return File::options()
                .read(port == Port::Input)
                .write(port != Port::Input)
                .open(&device)
                .with_context(|| format!("cannot open {}", device.display()));
        }
        if Instant::now() > end {
            bail!("the port {} does not appear", port.name());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn find_port(class: &Path, port: Port) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|device| {
        let name = fs::read_to_string(device.path().join("name")).ok()?;
        (name.trim_end() == port.name()).then(|| device.file_name().into())
    })
}

fn power_off() -> ! {
    nix::unistd::sync();
    // On success this call does not return; the outside ends QEMU in any case.
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    loop {
        thread::park();
    }
}
