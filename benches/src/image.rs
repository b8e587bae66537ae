//! How long a command of a container image takes to its first output: `orlop run --image`, whose image is a disk already; `runc run` with the
//! same image unpacked; and QEMU's microvm machine with the same kernel as Orlop's guest, and the image's shell as process 1. Where Firecracker is named,
//! also that with Debian's kernel: what a guest costs that nobody has made a kernel for.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use orlop_testbed::cache::Cache;
use orlop_testbed::cpio::{Archive, DIRECTORY, PROGRAM};
use orlop_testbed::image;
use orlop_testbed::progress::step;
use serde_json::{Value, json};

use crate::contender::{Contender, Content, Guest, Vmm, last_words};
use crate::figures::{median, table};
use crate::workplace::{Workplace, run};

/// The guests' RAM.
const MEMORY_MIB: u64 = 128;

/// How long one run may take where everything is emulated.
const LIMIT: Duration = Duration::from_secs(60);

/// What the command says.
const SAID: &str = "first";

/// Where Debian has runc, and where others have it.
const RUNC: [&str; 3] = ["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc"];

/// The process 1 of QEMU's guest. Its serial port has no interrupt without a PIC or ACPI, so the kernel writes the word for it.
const INIT: &str = "#!/bin/busybox sh\n\
     /bin/busybox mount -t devtmpfs dev /dev\n\
     /bin/busybox echo '<0>first' >/dev/kmsg\n\
     exec /bin/busybox sleep 1000\n";

/// The ways to run the command.
#[derive(Clone, Copy)]
enum Way {
    Orlop,
    Runc,
    Qemu,
    Firecracker,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Orlop => "`orlop run --image`",
            Way::Runc => "`runc run`",
            Way::Qemu => "QEMU microvm, without a container",
            Way::Firecracker => "Firecracker with Debian's kernel, without a container",
        }
    }
}

/// One run, in milliseconds from its start.
struct Run {
    first_output: f64,
    /// Of what ends by itself.
    end: Option<f64>,
}

/// Measures `runs` runs of each way in turn and prints a table.
///
/// # Errors
/// When something is missing, or a command does not say what it is to say.
pub fn measure(runs: u32) -> Result<()> {
    let stage = Stage::set()?;
    let ways = stage.ways();
    let mut measured: Vec<_> = ways.into_iter().map(|way| (way, Vec::new())).collect();
    for number in 0..=runs {
        for (way, measured) in &mut measured {
            let run = stage
                .one(*way)
                .with_context(|| format!("{}: {}", way.name(), last_words(&stage.log())))?;
            // The first one fills caches, and makes the image's disk.
            if number > 0 {
                let name = way.name().trim_matches('`');
                step(format!(
                    "run {number} of {runs}, {name}: {:.1} ms",
                    run.first_output
                ));
                measured.push(run);
            }
        }
    }
    print!("{}", report(&measured)?);
    Ok(())
}

/// What is run, and where.
struct Stage {
    workplace: Workplace,
    guest: Guest,
    /// Firecracker, and its guest.
    firecracker: Option<(Contender, Guest)>,
}

impl Stage {
    fn set() -> Result<Self> {
        let workplace = Workplace::make()?;
        let initramfs = workplace.path("initramfs");
        let mut archive = Archive::default();
        archive.add("dev", DIRECTORY, &[])?;
        archive.add("bin", DIRECTORY, &[])?;
        archive.add("bin/busybox", PROGRAM, &image::busybox()?)?;
        archive.add("init", PROGRAM, INIT.as_bytes())?;
        fs::write(&initramfs, archive.finish()?)?;
        let guest = |kernel| Guest {
            kernel,
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            content: Content::Initramfs(initramfs.clone()),
            needs_timer: false,
        };
        let mut named = workplace.named()?.into_iter();
        let firecracker = named.find(|named| matches!(named, Contender::Firecracker(_)));
        let debian = workplace.path("debian");
        if firecracker.is_some() {
            fs::copy(Cache::open()?.guest_vmlinux(), &debian).context("Debian's kernel")?;
        }
        let stage = Self {
            guest: guest(workplace.kernel()),
            firecracker: firecracker.map(|firecracker| (firecracker, guest(debian))),
            workplace,
        };
        stage.set_orlop()?;
        stage.set_runc()?;
        Ok(stage)
    }

    fn set_orlop(&self) -> Result<()> {
        let image = self.workplace.path("agent");
        fs::copy(Cache::open()?.own_image(), &image).context("Orlop's image")?;
        let config = format!(
            "kernel = {:?}\nimage = {image:?}\nboot_timeout = 240\n",
            self.workplace.kernel()
        );
        fs::write(self.config(), config)?;
        fs::write(self.images(), image::archive()?)?;
        Ok(())
    }

    fn set_runc(&self) -> Result<()> {
        let installed = RUNC.map(PathBuf::from).into_iter().find(|it| it.exists());
        let installed = installed.context("no runc; install Debian's package runc")?;
        fs::copy(installed, self.workplace.path("runc"))?;
        let bundle = self.bundle();
        image::unpack_busybox(&bundle.join("rootfs"))?;
        run(self.runc().arg("spec").arg("--bundle").arg(&bundle))?;
        let file = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let process = spec.get_mut("process").and_then(Value::as_object_mut);
        let process = process.context("runc's spec has no process")?;
        process.insert("terminal".into(), json!(false));
        process.insert("args".into(), json!(["echo", SAID]));
        fs::write(&file, serde_json::to_vec(&spec)?)?;
        Ok(())
    }

    fn ways(&self) -> Vec<Way> {
        let mut ways = vec![Way::Orlop, Way::Runc, Way::Qemu];
        ways.extend(self.firecracker.iter().map(|_| Way::Firecracker));
        ways
    }

    fn one(&self, way: Way) -> Result<Run> {
        match way {
            Way::Orlop => to_end(&mut self.orlop(), &self.log()),
            Way::Runc => {
                let mut runc = self.runc();
                runc.args(["run", "--bundle"])
                    .arg(self.bundle())
                    .arg("first");
                to_end(&mut runc, &self.log())
            }
            Way::Qemu => {
                let qemu = Contender::QemuMicrovm(self.workplace.emulator());
                let (run, _vmm) = to_first_output(&mut qemu.command(&self.guest)?, &self.log())?;
                Ok(run)
            }
            Way::Firecracker => {
                let (firecracker, guest) = self.firecracker.as_ref().context("not named")?;
                let (run, _vmm) = to_first_output(&mut firecracker.command(guest)?, &self.log())?;
                Ok(run)
            }
        }
    }

    fn orlop(&self) -> Command {
        let mut command = Command::new(self.workplace.orlop());
        command
            .args(["run", "--cpus", "1", "--memory"])
            .arg(format!("{MEMORY_MIB}M"))
            .arg("--image")
            .arg(format!("{}:{}", self.images().display(), image::BUSYBOX))
            .args(["--", "echo", SAID])
            .env("ORLOP_CONFIG", self.config())
            .env("ORLOP_IMAGES", self.workplace.path("store"))
            .env("XDG_RUNTIME_DIR", self.workplace.path("run"));
        command
    }

    fn runc(&self) -> Command {
        let mut command = Command::new(self.workplace.path("runc"));
        command.arg("--root").arg(self.workplace.path("containers"));
        command
    }

    fn bundle(&self) -> PathBuf {
        self.workplace.path("bundle")
    }

    fn config(&self) -> PathBuf {
        self.workplace.path("config.toml")
    }

    fn images(&self) -> PathBuf {
        self.workplace.path("images.tar")
    }

    fn log(&self) -> PathBuf {
        self.workplace.path("log")
    }
}

/// Runs a command until it says what it is to say. What it says otherwise goes to the file `log`.
fn to_first_output(command: &mut Command, log: &Path) -> Result<(Run, Vmm)> {
    let mut log = File::create(log)?;
    let began = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut child = Vmm(child);
    let output = child.0.stdout.as_mut().context("no output to read")?;
    let mut said = Vec::new();
    let first_output = loop {
        let mut polled = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(1000_u16))? > 0 {
            let mut block = [0; 4096];
            let count = output.read(&mut block)?;
            said.extend(block.get(..count).unwrap_or_default());
            let mut lines = said.split(|byte| *byte == b'\n');
            // A kernel writes the time before it.
            if lines.any(|line| line.trim_ascii_end().ends_with(SAID.as_bytes())) {
                break milliseconds(began);
            }
            if count == 0 {
                log.write_all(&said)?;
                bail!("it ended without a word: {}", child.0.wait()?);
            }
        }
        if began.elapsed() > LIMIT {
            log.write_all(&said)?;
            bail!("it says nothing for {} s", LIMIT.as_secs());
        }
    };
    let run = Run {
        first_output,
        end: None,
    };
    Ok((run, child))
}

/// Runs a command to its end as well.
fn to_end(command: &mut Command, log: &Path) -> Result<Run> {
    let began = Instant::now();
    let (mut run, mut child) = to_first_output(command, log)?;
    if let Some(mut output) = child.0.stdout.take() {
        output.read_to_end(&mut Vec::new())?;
    }
    let status = child.0.wait()?;
    if !status.success() {
        bail!("it ended with {status}");
    }
    run.end = Some(milliseconds(began));
    Ok(run)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn report(measured: &[(Way, Vec<Run>)]) -> Result<String> {
    let firsts = |runs: &[Run]| median(runs.iter().map(|run| run.first_output));
    let (_, ours) = measured.first().context("nothing was measured")?;
    let our = firsts(ours)?;
    let rows = measured
        .iter()
        .map(|(way, runs)| {
            let first = firsts(runs)?;
            let outputs = || runs.iter().map(|run| run.first_output);
            let (least, most) = (
                outputs().fold(f64::INFINITY, f64::min),
                outputs().fold(0.0, f64::max),
            );
            let end = median(runs.iter().filter_map(|run| run.end));
            Ok([
                way.name().to_owned(),
                format!("{first:.0}"),
                format!("{least:.0} to {most:.0}"),
                format!("{:.2}", our / first),
                end.map_or_else(|_| "-".to_owned(), |end| format!("{end:.0}")),
            ])
        })
        .collect::<Result<Vec<_>>>()?;
    let median_of = format!("first output, median of {}, ms", ours.len());
    Ok(table(
        &[
            "",
            median_of.as_str(),
            "least and most",
            "Orlop's share",
            "until the end, ms",
        ],
        rows,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_a_row_for_each_way() {
        let run = |first_output, end| Run { first_output, end };
        let report = report(&[
            (
                Way::Orlop,
                vec![run(100.0, Some(150.0)), run(120.0, Some(170.0))],
            ),
            (Way::Runc, vec![run(50.0, Some(60.0))]),
            (Way::Qemu, vec![run(220.0, None)]),
        ]);
        let report = report.unwrap();
        let rows: Vec<_> = report.lines().skip(3).collect();
        assert_eq!(
            rows,
            [
                "| `orlop run --image` | 110 | 100 to 120 | 1.00 | 160 |",
                "| `runc run` | 50 | 50 to 50 | 2.20 | 60 |",
                "| QEMU microvm, without a container | 220 | 220 to 220 | 0.50 | - |",
            ]
        );
    }

    #[test]
    fn a_run_is_measured_to_its_word_and_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let shell = |script: &str| to_end(Command::new("sh").args(["-c", script]), &log);
        let run = shell("echo other; echo first; sleep 0.2").unwrap();
        assert!(run.end.unwrap() >= run.first_output + 200.0);
        assert!(shell("echo other").is_err());
        assert!(shell("echo first; exit 3").is_err());
    }
}
