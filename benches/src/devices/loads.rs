//! What is done by a guest's devices, one thing after another, and how its figure is read.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use super::said::{datagrams, files, fio};
use super::{GUEST, HOST};
use crate::contender::TAG;

/// How much of each thing is done.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// For so long by fio.
    fio: &'static str,
    /// So much by iperf3.
    iperf: &'static str,
    /// Datagrams by it for so long.
    datagrams: &'static str,
    /// So many files.
    files: u32,
}

impl Effort {
    /// Enough for figures of a real machine.
    pub const FULL: Self = Self {
        fio: "3s",
        iperf: "--time 3",
        datagrams: "--time 3",
        files: 10_000,
    };
    /// Enough where all is emulated.
    pub const EMULATED: Self = Self {
        fio: "1s",
        // As much for all, so that exits can be compared.
        iperf: "--bytes 32M",
        datagrams: "--time 1",
        files: 300,
    };
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Blk,
    Net,
    Vsock,
    Fs,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Blk => "blk",
            Kind::Net => "net",
            Kind::Vsock => "vsock",
            Kind::Fs => "fs",
        })
    }
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// MiB each second.
    Bandwidth,
    /// Requests each second.
    Requests,
    /// Packets each second.
    Packets,
    /// Files each second.
    Files,
    /// Microseconds, of which fewer are better.
    Time,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Bandwidth => "MiB/s",
            Unit::Requests => "requests/s",
            Unit::Packets => "packets/s",
            Unit::Files => "files/s",
            Unit::Time => "µs",
        })
    }
}

/// One thing that is done, and measured.
#[derive(Debug, PartialEq)]
pub struct Load {
    pub kind: Kind,
    pub what: &'static str,
    pub unit: Unit,
    how: How,
}

#[derive(Debug, PartialEq)]
enum How {
    /// fio in the guest, with these arguments.
    Fio(&'static str),
    /// An iperf3 in the guest, with these arguments, of one on the host.
    Iperf(&'static str),
    /// Datagrams by iperf3, as many as there can be, with these arguments.
    Datagrams(&'static str),
    /// Files are made, listed and removed.
    Files,
    /// The guest connects to a port of the host by vsock, and the host measures.
    Host(Task),
}

/// What the host does on a stream that comes from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Takes bytes to their end.
    Take,
    /// Gives bytes.
    Give,
    /// Sends a byte and waits until it comes back, again and again.
    Echo,
    /// Sends packets to the guest's network card and waits for the answers.
    Ping,
}

const fn load(kind: Kind, what: &'static str, unit: Unit, how: How) -> Load {
    Load {
        kind,
        what,
        unit,
        how,
    }
}

/// Everything, in the order in which it is done.
pub const LOADS: &[Load] = {
    use How::{Datagrams, Fio, Host, Iperf};
    use Kind::{Blk, Fs, Net, Vsock};
    use Unit::{Bandwidth, Packets, Requests, Time};
    &[
        load(
            Blk,
            "sequential reads, 1 MiB, depth 4",
            Bandwidth,
            Fio("--rw=read --bs=1M --iodepth=4"),
        ),
        load(
            Blk,
            "sequential writes, 1 MiB, depth 4",
            Bandwidth,
            Fio("--rw=write --bs=1M --iodepth=4"),
        ),
        load(
            Blk,
            "random reads, 4 KiB, depth 1",
            Requests,
            Fio("--rw=randread --bs=4k --iodepth=1"),
        ),
        load(
            Blk,
            "random reads, 4 KiB, depth 16",
            Requests,
            Fio("--rw=randread --bs=4k --iodepth=16"),
        ),
        load(
            Blk,
            "random writes, 4 KiB, depth 1",
            Requests,
            Fio("--rw=randwrite --bs=4k --iodepth=1"),
        ),
        load(
            Blk,
            "random writes, 4 KiB, depth 16",
            Requests,
            Fio("--rw=randwrite --bs=4k --iodepth=16"),
        ),
        load(Net, "TCP, guest to host", Bandwidth, Iperf("")),
        load(Net, "TCP, host to guest", Bandwidth, Iperf("--reverse")),
        load(
            Net,
            "UDP, 64 bytes, guest to host",
            Packets,
            Datagrams("--length 64"),
        ),
        load(Net, "ping from the host", Time, Host(Task::Ping)),
        load(Vsock, "guest to host", Bandwidth, Host(Task::Take)),
        load(Vsock, "host to guest", Bandwidth, Host(Task::Give)),
        load(Vsock, "a byte, there and back", Time, Host(Task::Echo)),
        load(
            Fs,
            "sequential reads, 1 MiB",
            Bandwidth,
            Fio("--rw=read --bs=1M"),
        ),
        load(
            Fs,
            "sequential writes, 1 MiB",
            Bandwidth,
            Fio("--rw=write --bs=1M"),
        ),
        load(
            Fs,
            "random reads, 4 KiB",
            Requests,
            Fio("--rw=randread --bs=4k"),
        ),
        load(
            Fs,
            "random writes, 4 KiB",
            Requests,
            Fio("--rw=randwrite --bs=4k"),
        ),
        load(Fs, "made, listed and removed", Unit::Files, How::Files),
    ]
};

impl Load {
    /// The host's part, if it has one.
    pub fn task(&self) -> Option<Task> {
        match self.how {
            How::Host(task) => Some(task),
            How::Fio(_) | How::Iperf(_) | How::Datagrams(_) | How::Files => None,
        }
    }

    /// The shell's words that do it in the guest. What fio or iperf3 says becomes a line that begins with `figure`.
    fn command(&self, number: usize, effort: Effort) -> String {
        let port = port(number);
        let said = match &self.how {
            How::Fio(arguments) => {
                let target = match self.kind {
                    Kind::Fs => "--directory=/shared --size=64M --ioengine=psync",
                    _ => "--filename=/dev/vdb --ioengine=io_uring",
                };
                format!(
                    "fio --name=load --output-format=terse --terse-version=3 --direct=1 --time_based --runtime={} \
                     {target} {arguments} | tail -n 1",
                    effort.fio
                )
            }
            How::Iperf(arguments) => {
                format!(
                    "iperf3 --client {HOST} {} --format M {arguments} | grep receiver",
                    effort.iperf
                )
            }
            How::Datagrams(arguments) => {
                format!(
                    "iperf3 --client {HOST} {} --udp --bitrate 0 {arguments} | grep receiver",
                    effort.datagrams
                )
            }
            How::Files => {
                format!(
                    "now() {{ read up rest </proc/uptime; echo ${{up%.*}}${{up#*.}}; }}; cd /shared; begun=$(now); i=0; \
                     while [ $i -lt {files} ]; do : >file$i; i=$((i + 1)); done; ls -l >/dev/null; rm file*; \
                     echo {files} files, $(($(now) - begun)) hundredths",
                    files = effort.files
                )
            }
            How::Host(task) => {
                let host = format!("VSOCK-CONNECT:2:{port}");
                return match task {
                    Task::Take => format!(
                        "socat -u -b 65536 OPEN:/dev/zero,readbytes={} {host}",
                        super::host::STREAM
                    ),
                    Task::Give | Task::Ping => {
                        format!("socat -u -b 65536 {host} OPEN:/dev/null,wronly")
                    }
                    Task::Echo => format!("socat {host} PIPE"),
                };
            }
        };
        format!("echo figure {number} $({said})")
    }

    /// The figure in what the guest said.
    ///
    /// # Errors
    /// When it is not there.
    pub fn figure(&self, said: &str) -> Result<f64> {
        match self.how {
            How::Fio(_) => fio(said, self.unit),
            How::Iperf(_) => {
                // `[ 5] 0.00-1.00 sec 112 MBytes 112 MBytes/sec receiver`, whose MBytes are of 2^20.
                let before = said.split_once(" MBytes/sec").context("no rate")?.0;
                Ok(before.rsplit(' ').next().unwrap_or_default().parse()?)
            }
            How::Datagrams(_) => datagrams(said).context("no datagrams"),
            How::Files => files(said).context("no files"),
            How::Host(_) => bail!("the host measures it"),
        }
    }
}

/// The port of the host's at which a load is waited for.
pub fn port(number: usize) -> u32 {
    // Too few to be out of range.
    5000 + number as u32
}

/// The script of the guest's process 1, which does what its kernel's command line orders.
pub fn script(effort: Effort) -> String {
    let mut script = format!(
        "#!/bin/sh\n\
         export PATH=/bin:/usr/bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp\n\
         ip addr add {GUEST}/24 dev eth0; ip link set lo up; ip link set eth0 up; cd /tmp\n"
    );
    let mut mounted = false;
    for (number, load) in LOADS.iter().enumerate() {
        let mut command = load.command(number, effort);
        if load.kind == Kind::Fs && !mounted {
            command = format!("mount -t virtiofs {TAG} /shared; {command}");
            mounted = true;
        }
        script.push_str(&format!(
            "case ,$loads, in *,{number},*) {command} ;; esac\n"
        ));
    }
    script.push_str("echo all is done\n$end -f\n");
    script
}

/// What the kernel's command line has to say to the script: the numbers of the loads that are wanted, and the command by which the guest ends.
pub fn order(numbers: &[usize], end: &str) -> String {
    let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
    format!("loads={} end={end}", numbers.join(","))
}

/// The figures that the guest has said, each with its load's number.
///
/// # Errors
/// When one is not understood, or it did not come to its end.
pub fn figures(console: &str) -> Result<Vec<(usize, f64)>> {
    ensure!(console.contains("all is done"), "it did not do everything");
    let lines = console
        .lines()
        .filter_map(|line| line.strip_prefix("figure "));
    lines
        .map(|line| {
            let (number, said) = line.split_once(' ').unwrap_or((line, ""));
            let number: usize = number.parse()?;
            let load = LOADS.get(number).context("no such load")?;
            let figure = load.figure(said);
            let figure = figure.with_context(|| format!("{}: {said:?}", load.what))?;
            Ok((number, figure))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn terse(error: &str, read: [&str; 2], write: [&str; 2]) -> String {
        let mut fields = vec!["0"; 60];
        fields[0] = "3";
        fields[4] = error;
        fields[6..8].copy_from_slice(&read);
        fields[47..49].copy_from_slice(&write);
        fields.join(";")
    }

    #[test]
    fn a_consoles_figures_are_read() {
        let read = terse("0", ["2048", "2"], ["0", "0"]);
        let random = terse("0", ["0", "0"], ["4000", "1000"]);
        let console = format!(
            "figure 0 {read}\r\nnoise\r\nfigure 5 {random}\r\n\
             figure 6 [ 5] 0.00-1.00 sec 112 MBytes 111 MBytes/sec receiver\r\n\
             figure 8 [ 5] 0.00-2.00 sec 1.1 MBytes 4.6 Mbits/sec 0.1 ms 100/1100 (9.1%) receiver\r\n\
             figure 17 300 files, 120 hundredths\r\nall is done\r\n"
        );
        assert_eq!(
            figures(&console).unwrap(),
            [(0, 2.0), (5, 1000.0), (6, 111.0), (8, 500.0), (17, 250.0)]
        );
    }

    #[test]
    fn what_failed_is_no_figure() {
        let failed = terse("5", ["2048", "2"], ["0", "0"]);
        for console in [
            "figure 0 3;fio",
            "figure 6 ",
            "figure 8 [ 5] 0.00-2.00 sec",
            "figure 17 many",
            "figure 99 1",
            &format!("figure 0 {failed}"),
        ] {
            let console = format!("{console}\nall is done\n");
            assert!(figures(&console).is_err(), "{console}");
        }
        let cut = terse("0", ["2048", "2"], ["0", "0"]);
        assert!(figures(&format!("figure 0 {cut}\n")).is_err());
    }

    #[test]
    fn a_script_does_what_is_ordered_only() {
        let script = script(Effort::EMULATED);
        let stand_ins = "mount() { :; }; ip() { :; }; fio() { echo f; }";
        let shell = |order: &str| {
            let script = format!("{order}\n{stand_ins}\n{script}");
            let said = Command::new("sh").args(["-c", &script]).output();
            String::from_utf8(said.unwrap().stdout).unwrap()
        };
        let ordered = order(&[0, 4], "true");
        assert_eq!(shell(&ordered), "figure 0 f\nfigure 4 f\nall is done\n");
    }
}
