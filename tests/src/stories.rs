//! `cargo testbed test`: the unit tests here, the stories and all other integration tests where KVM is, a few programs of them at a time with a
//! machine and a containerd of their own.
//!
//! A story that cannot be told on a machine says so with [`skip`]; it is counted as skipped, never as passed.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use serde_json::Value;

use crate::cache::Cache;
use crate::cluster::{self, namespaces};
use crate::containerd::{
    DIRECTORY_VARIABLE, Node, RELEASE_VARIABLE, SANDBOXER_VARIABLE, Sandboxer, Version,
};
use crate::groups::{CONFORMANCE, Group, Groups, name_of, stories_of};
use crate::host::{self, HostKernel};
use crate::own;
use crate::progress::step;
use crate::setup::{self, build, go};
use crate::tally::{Count, SKIPPED, Told};
use crate::wanted::Wanted;

/// A story program's limit in a virtual host: several times what it takes on two slow processors.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// A virtual host's memory in MiB: room for a guest whose memory goes around the 32-bit hole. Only what is used of it is had.
const MEMORY_MIB: u32 = 6144;

/// How often stories are begun that failed in an emulated machine.
const ATTEMPTS: u32 = 4;
/// How often stories are begun whose machine failed: its kernel panicked or hung, which tells nothing of them.
const MACHINES: u32 = 6;

/// How many minutes the soak lasts after its first round, and the seed that decides what happens in it.
pub const SOAK_MINUTES_VARIABLE: &str = "ORLOP_SOAK_MINUTES";
/// See above.
pub const SOAK_SEED_VARIABLE: &str = "ORLOP_SOAK_SEED";
/// The program that it is.
const SOAK: &str = "soak";

/// The arguments with which a test program tells its stories one after another, and all that they say.
const ONE_BY_ONE: [&str; 2] = ["--test-threads=1", "--nocapture"];

/// The program whose stories are told in a Kubernetes cluster, which takes long to build and some time to start.
const CLUSTER: &str = "kubernetes";

/// How many of the usual limits the tests of others may take: each test of a hundred has a pod of its own, first with runc and then with Orlop.
const CONFORMANCE_LIMIT: u32 = 9;

/// The program whose stories replace a containerd by newer ones, which are to be built.
const UPGRADES: &str = "upgrades";

/// The programs whose stories are told when all are asked for, or these by their names: a machine that emulates everything takes long for them.
const LONG: &[&str] = &[
    CLUSTER,
    CONFORMANCE,
    "balloon",
    "iperf",
    "passthrough",
    "resize",
    SOAK,
    UPGRADES,
];

/// How stories are told.
#[derive(Debug, Clone)]
pub struct Telling {
    /// Whether those that take long are told too when none are asked for by name.
    all: bool,
    /// Whether they move as much as they are meant to.
    full: bool,
    /// Which containerd they have. A cluster has its own.
    containerd: Version,
    /// The kernel of their virtual host.
    host_kernel: HostKernel,
    /// What they look at in their environment.
    variables: Vec<(&'static str, String)>,
    /// How long one program may take in a virtual host.
    limit: Duration,
    /// How often stories are begun that failed in an emulated machine.
    attempts: u32,
}

impl Default for Telling {
    fn default() -> Self {
        Telling {
            all: false,
            full: false,
            containerd: Version::default(),
            host_kernel: HostKernel::default(),
            variables: Vec::new(),
            limit: LIMIT,
            attempts: ATTEMPTS,
        }
    }
}

impl Telling {
    /// Everything at its full size.
    #[must_use]
    pub fn full() -> Self {
        Telling {
            full: true,
            variables: vec![(FULL_VARIABLE, "1".into())],
            limit: LIMIT * 6,
            ..Telling::default()
        }
    }

    /// The same, and whether those that take long are among those that are told when none are asked for by name.
    #[must_use]
    pub fn of_all(self, all: bool) -> Self {
        Telling { all, ..self }
    }

    /// The same with another containerd, and whoever makes its pods' sandboxes.
    ///
    /// # Errors
    /// When that containerd has nobody make them but itself.
    pub fn with(mut self, containerd: Version, sandboxer: Sandboxer) -> Result<Self> {
        if sandboxer != Sandboxer::default() {
            if containerd != Version::Two {
                bail!("only containerd 2 has another sandboxer: say --containerd 2 as well");
            }
            let name = sandboxer.name().to_owned();
            self.variables.push((SANDBOXER_VARIABLE, name));
        }
        Ok(Telling { containerd, ..self })
    }

    /// The same in a virtual host with another kernel.
    #[must_use]
    pub fn on(self, host_kernel: HostKernel) -> Self {
        Telling {
            host_kernel,
            ..self
        }
    }

    /// A soak of so many minutes.
    fn soak(minutes: u32, seed: Option<u64>) -> Self {
        let mut variables = vec![(SOAK_MINUTES_VARIABLE, minutes.to_string())];
        variables.extend(seed.map(|seed| (SOAK_SEED_VARIABLE, seed.to_string())));
        Telling {
            variables,
            limit: LIMIT + Duration::from_secs(60) * minutes,
            // A soak that fails has found something, and says with which seed.
            attempts: 1,
            ..Telling::default()
        }
    }
}

/// Soaks a VM: the story that has everything happen to it at random, for so many minutes.
///
/// # Errors
/// As [`test`].
pub fn soak(minutes: u32, seed: Option<u64>, host_kernel: HostKernel) -> Result<ExitCode> {
    test(
        &[SOAK.into()],
        &Telling::soak(minutes, seed).on(host_kernel),
    )
}

/// Says why a story is not told on this machine. The story then returns.
pub fn skip(reason: &str) {
    println!("{SKIPPED}{reason}");
}

/// Has the stories that move much move all of it: `cargo testbed test --full`.
pub const FULL_VARIABLE: &str = "ORLOP_FULL_SIZE";

/// How much a story moves: `full` when it is to be seen at its full size, which takes an emulated machine long.
#[must_use]
pub fn size(usual: u64, full: u64) -> u64 {
    if env::var_os(FULL_VARIABLE).is_some_and(|value| value == "1") {
        full
    } else {
        usual
    }
}

/// Runs all tests and prints, alone on the last line, `N passed, N failed, N skipped`.
///
/// # Errors
/// When the tests could not be run. Tests that failed are told by the status.
pub fn test(only: &[String], telling: &Telling) -> Result<ExitCode> {
    setup::for_tests()?;
    if telling.full {
        setup::debian_image::build(&Cache::open()?)?;
    }
    let mut total = Count::default();
    let mut broken = false;
    if only.is_empty() {
        step("running the unit tests here");
        let mut command = build::cargo_command();
        command.args(["test", "--workspace", "--lib", "--bins", "--no-fail-fast"]);
        let (count, ended_well) = tell_by(command)?;
        total.add(count);
        // A test program that crashes has no summary to count in.
        broken |= !ended_well && count.failed == 0;
    }
    step("building the stories");
    let programs = story_programs()?;
    let names: Vec<_> = programs.iter().map(|it| name_of(it)).collect();
    let wanted = Wanted::among(&names, only);
    let mut together = Groups::default();
    let mut any = only.is_empty();
    for program in programs {
        let name = name_of(&program);
        if only.is_empty() && !telling.all && LONG.contains(&name.as_str()) {
            total.skipped += pass_over(&program)?;
        } else if name == CLUSTER {
            if let Some(only) = wanted.of(&program)? {
                any = true;
                let (count, ended_well) = tell_in_cluster(&program, only, telling)?;
                total.add(count);
                broken |= !ended_well && count.failed == 0;
            }
        } else if let Some(only) = wanted.of(&program)? {
            any = true;
            match name.as_str() {
                CONFORMANCE => drop(go::build(&Cache::open()?, go::CONFORMANCE)?),
                UPGRADES => {
                    for version in Version::value_variants() {
                        version.get()?;
                    }
                }
                _ => {}
            }
            together.add(program, only)?;
        }
    }
    if !any {
        bail!(
            "no story has {} in its name, and there are no programs of such names but {}",
            only.join(" or "),
            names.join(", ")
        );
    }
    for group in together.0 {
        let (count, ended_well) = tell_where_kvm_is(&group, telling)?;
        total.add(count);
        broken |= !ended_well && count.failed == 0;
    }
    if broken {
        step("a test program ended without saying how its tests went: see above");
        total.failed += 1;
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Says that the stories of a program are not told, and how many these are.
fn pass_over(program: &Path) -> Result<u32> {
    let stories = stories_of(program)?.len();
    let name = name_of(program);
    println!(
        "{SKIPPED}{stories} stories of {name}, which take long: `cargo testbed test {name}` tells them, or --all"
    );
    Ok(u32::try_from(stories)?)
}

/// Tells the stories of some programs in a machine of their own. When the machine fails rather than a story, those that are not over are
/// told again in another one. In an emulated machine a guest crashes or stops now and then, whoever runs it (docs/architecture.md); so
/// there, and only there, a story that failed is told again as well. A line says so each time.
fn tell_where_kvm_is(group: &Group, telling: &Telling) -> Result<(Count, bool)> {
    let this = own::program()?;
    let names: Vec<_> = group.programs.iter().map(|it| name_of(it)).collect();
    let names = names.join(", ");
    let mut limit = telling.limit * u32::try_from(group.programs.len())?;
    if group.is_conformance() {
        limit *= CONFORMANCE_LIMIT;
    }
    let containerd = telling.containerd.get()?;
    // These begin by themselves again what an emulated machine has let fail.
    let attempts = if group.is_conformance() {
        1
    } else {
        telling.attempts
    };
    let mut told = Told::default();
    step(format!("starting the machine for {names}"));
    for attempt in 1.. {
        let mut command = Command::new(&this);
        command.args(["host", "--timeout", &limit.as_secs().to_string()]);
        command.args(["--memory", &MEMORY_MIB.to_string()]);
        command.args(["--host-kernel", telling.host_kernel.name()]);
        if group.has_devices() {
            command.arg("--passthrough");
        }
        command.arg("--").arg(&this).arg("stories");
        for program in &group.programs {
            command.arg("--program").arg(program);
        }
        command.arg("--").args(group.only);
        // Names are matched as parts of names or exactly, all of them alike, so only a run of everything can leave some out.
        if group.only.is_empty() {
            command.arg("--exact");
            for name in told.over() {
                command.args(["--skip", name]);
            }
        }
        let variables = telling.variables.iter();
        command.envs(variables.map(|(name, value)| (name, value)));
        command.env(RELEASE_VARIABLE, containerd.programs());
        command.stdin(Stdio::null());
        let mut count = Count::default();
        let status = read_lines(command, |line| {
            count.take(line);
            told.take(line);
        })?;
        let machine_failed = status.code() == Some(host::EXIT_HOST_FAILED.into());
        let emulated_failure = count.failed > 0 && !host::kvm::is_hardware();
        let again = machine_failed && attempt < MACHINES || emulated_failure && attempt < attempts;
        if !again {
            return Ok((told.count(count.failed), status.success()));
        }
        step(format!(
            "FLAKY: {names} {}, attempt {attempt}: once more",
            if machine_failed {
                "lost their machine"
            } else {
                "failed in an emulated machine"
            }
        ));
    }
    bail!("no attempt was made")
}

/// Tells the stories of one program beside a Kubernetes cluster of their own.
fn tell_in_cluster(program: &Path, only: &[String], telling: &Telling) -> Result<(Count, bool)> {
    cluster::Programs::get()?;
    cluster::addons::Programs::get()?;
    step(format!("starting the cluster for {}", name_of(program)));
    let mut arguments = vec![OsString::from("in-cluster"), "--".into(), program.into()];
    arguments.extend(ONE_BY_ONE.map(OsString::from));
    arguments.extend(only.iter().map(OsString::from));
    let mut command = namespaces::command(&arguments)?;
    let variables = telling.variables.iter();
    command.envs(variables.map(|(name, value)| (name, value)));
    command.stdin(Stdio::null());
    tell_by(command)
}

/// Tells stories by running `command`.
fn tell_by(command: Command) -> Result<(Count, bool)> {
    let mut count = Count::default();
    let status = read_lines(command, |line| count.take(line))?;
    Ok((count, status.success()))
}

/// Runs the story programs on this machine, which has KVM, with a containerd that they share. Called inside the virtual host.
///
/// # Errors
/// When containerd cannot be started.
pub fn tell(programs: &[PathBuf], only: &[String]) -> Result<ExitCode> {
    let directory = tempfile::Builder::new()
        .prefix("node-")
        .tempdir_in("/run")?;
    step("starting containerd");
    let (node, _daemon) = Node::start(directory.path())?;
    let mut failed = false;
    for program in programs {
        step(format!("telling {}", name_of(program)));
        let status = Command::new(program)
            .args(ONE_BY_ONE)
            .args(only)
            .env(DIRECTORY_VARIABLE, node.directory())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {}", program.display()))?;
        failed |= !status.success();
    }
    if failed {
        step(format!("the end of containerd's log:\n{}", node.log_tail()));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Runs a command that runs test programs, shows its output and gives each line of it to `take`.
fn read_lines(mut command: Command, mut take: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let output = child.stdout.take().context("no output to read")?;
    let mut to = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        writeln!(to, "{line}")?;
        take(&line);
    }
    Ok(child.wait()?)
}

/// Builds the integration tests of all crates and returns their programs.
fn story_programs() -> Result<Vec<PathBuf>> {
    let mut command = build::cargo_command();
    let output = command
        .args(["test", "--workspace", "--test=*", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("the stories do not compile");
    }
    let mut programs = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let is_story = message["target"]["kind"][0] == "test";
        if let (true, Some(program)) = (is_story, message["executable"].as_str()) {
            programs.push(PathBuf::from(program));
        }
    }
    programs.sort();
    Ok(programs)
}
