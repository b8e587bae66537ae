//! The host's ends of a guest's devices: a tap, a virtiofsd, an iperf3, and whoever is called by vsock.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orlop_testbed::cache::Cache;
use socket2::{Domain, SockAddr, Socket, Type};

use super::loads::{LOADS, Task, port};
use super::{GUEST, HOST, LIMIT, Run};
use crate::contender::{self, Contender, Devices, Vmm};
use crate::workplace::run;

/// How many bytes go through a stream.
pub const STREAM: u64 = 32 << 20;
/// How many bytes are sent at a time.
const CHUNK: usize = 64 << 10;
/// How often a byte goes there and back.
const ECHOES: u32 = 500;
/// How many packets are answered.
const PINGS: u32 = 200;

/// Makes a disk of so many MiB. It is filled, for what nobody has written yet is read quicker, and written slower.
///
/// # Errors
/// When it cannot be written.
pub fn fill(path: &Path, mib: u32) -> Result<()> {
    let mut disk = File::create(path)?;
    let ones = vec![1; 1 << 20];
    for _ in 0..mib {
        disk.write_all(&ones)?;
    }
    // A page that is read a first and a second time costs the host's kernel more than later, which would be the first VMM's to pay.
    for _ in 0..2 {
        io::copy(&mut File::open(path)?, &mut io::sink())?;
    }
    Ok(())
}

/// A tap that goes when this is dropped.
pub struct Tap(&'static str);

impl Tap {
    /// Makes it, with the host's address.
    ///
    /// # Errors
    /// When the kernel has no taps, or one of this name is there.
    pub fn make(name: &'static str) -> Result<Self> {
        let ip = |line: &str| run(Command::new("ip").args(line.split(' ')));
        ip(&format!("tuntap add dev {name} mode tap"))?;
        let tap = Self(name);
        ip(&format!("addr add {HOST}/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // What holds it is in the error; there is nobody to tell.
        let _ = run(Command::new("ip").args(["link", "delete", self.0]));
    }
}

/// An iperf3 that serves one client after another.
///
/// # Errors
/// When it cannot be run.
pub fn iperf(log: &Path) -> Result<Vmm> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--bind", HOST]);
    contender::start(&mut command, log).map(Vmm)
}

/// A virtiofsd for one guest.
///
/// # Errors
/// When it cannot be run, or does not listen.
pub fn virtiofsd(directory: &Path, socket: &Path, log: &Path) -> Result<Vmm> {
    // One that the last guest's has left.
    let _ = fs::remove_file(socket);
    let mut command = Command::new(Cache::open()?.virtiofsd());
    command.arg("--shared-dir").arg(directory);
    command.arg("--socket-path").arg(socket);
    let daemon = contender::start(&mut command, log).map(Vmm)?;
    let end = Instant::now() + LIMIT;
    while !socket.exists() {
        let why = || contender::last_words(log);
        anyhow::ensure!(Instant::now() < end, "virtiofsd does not listen: {}", why());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(daemon)
}

/// Does the host's part of the loads `numbers` when the guest calls, and ends with what was measured.
///
/// # Errors
/// When a port cannot be listened at.
pub fn serve(
    contender: &Contender,
    devices: &Devices,
    numbers: &[usize],
) -> Result<JoinHandle<Result<Run>>> {
    let mut calls = Vec::new();
    for number in numbers {
        if let Some(task) = LOADS.get(*number).and_then(|load| load.task()) {
            let listener = listen(contender, devices, port(*number))?;
            calls.push((*number, task, listener));
        }
    }
    Ok(thread::spawn(move || {
        let done = calls.into_iter().map(|(number, task, listener)| {
            let (stream, _) = listener.accept().context("the guest does not call")?;
            Ok((number, perform(task, stream)?))
        });
        done.collect()
    }))
}

/// Listens for a guest that calls a port of its host's: QEMU's have the kernel's vsock, the others' end at a unix socket with the port's number.
fn listen(contender: &Contender, devices: &Devices, port: u32) -> Result<Socket> {
    let (domain, address) = match contender {
        Contender::Orlop(_) | Contender::Firecracker(_) | Contender::CloudHypervisor(_) => {
            let path = format!("{}_{port}", devices.vsock.display());
            // One of an earlier guest.
            let _ = fs::remove_file(&path);
            (Domain::UNIX, SockAddr::unix(path)?)
        }
        Contender::QemuMicrovm(_) | Contender::QemuQ35(_) => {
            (Domain::VSOCK, SockAddr::vsock(libc::VMADDR_CID_ANY, port))
        }
    };
    let listener = Socket::new(domain, Type::STREAM, None)?;
    listener
        .bind(&address)
        .with_context(|| format!("cannot listen at port {port}"))?;
    listener.listen(1)?;
    // For accepting, too: a guest that died does not call.
    listener.set_read_timeout(Some(LIMIT))?;
    Ok(listener)
}

/// Does the host's part and measures it.
fn perform(task: Task, mut stream: Socket) -> Result<f64> {
    let mut buffer = vec![0; CHUNK];
    match task {
        Task::Take => {
            // The first bytes tell that the other end has begun.
            let first = stream.read(&mut buffer)?;
            let begun = Instant::now();
            let taken = std::io::copy(&mut stream, &mut std::io::sink())?;
            anyhow::ensure!(
                taken + first as u64 == STREAM,
                "{taken} bytes of {STREAM} came"
            );
            Ok(rate(taken, begun))
        }
        Task::Give => {
            let begun = Instant::now();
            for _ in 0..STREAM / CHUNK as u64 {
                stream.write_all(&buffer)?;
            }
            stream.shutdown(Shutdown::Write)?;
            // The other end closes once it has all.
            std::io::copy(&mut stream, &mut std::io::sink())?;
            Ok(rate(STREAM, begun))
        }
        Task::Echo => {
            let begun = Instant::now();
            for _ in 0..ECHOES {
                stream.write_all(&[1])?;
                stream.read_exact(&mut [0])?;
            }
            Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(ECHOES))
        }
        Task::Ping => ping(),
    }
}

fn rate(bytes: u64, begun: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64()
}

/// The mean time of a packet to the guest and back, each sent when the last one came, in microseconds.
fn ping() -> Result<f64> {
    let count = PINGS.to_string();
    let output = Command::new("ping")
        .args(["-q", "-A", "-c", &count, GUEST])
        .output()
        .context("cannot run ping")?;
    let said = String::from_utf8_lossy(&output.stdout);
    mean(&said).with_context(|| format!("ping says {said}"))
}

/// The mean in `rtt min/avg/max/mdev = 0.1/0.2/0.3/0.1 ms`, in microseconds.
fn mean(said: &str) -> Option<f64> {
    let times = said.split_once("rtt min/avg/max/mdev = ")?.1;
    let mean: f64 = times.split('/').nth(1)?.parse().ok()?;
    Some(mean * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_pings_is_read() {
        let said = "300 packets transmitted, 300 received, 0% packet loss, time 60ms\n\
                    rtt min/avg/max/mdev = 0.155/0.250/0.700/0.030 ms, ipg/ewma 0.2/0.1 ms\n";
        assert_eq!(mean(said), Some(250.0));
        assert_eq!(mean("300 packets transmitted, 0 received"), None);
    }
}
