//! The tests that the CRI's authors have written for runtimes, `critest`, with one handler or another of a containerd.
//!
//! What they pull comes from a registry on this machine, which has [`images`] of the names that they ask for. [`report`] is what they found.

mod images;
mod registry;
pub mod report;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::containerd::Node;
use crate::host;
use crate::progress::step;
use crate::setup::go;
use report::Report;

/// Has only those tests run whose names match this regular expression.
pub const FOCUS_VARIABLE: &str = "ORLOP_CRITEST_FOCUS";

/// How often is said how far it is.
const PROGRESS: Duration = Duration::from_secs(60);

/// What the tests run on.
#[derive(Debug)]
pub struct Suite {
    node: Node,
    programs: std::path::PathBuf,
    /// The network's configuration as it was.
    network: Vec<u8>,
    _registry: registry::Registry,
}

impl Suite {
    /// Prepares `node` for the tests: a registry, and host ports that lead to pods.
    ///
    /// # Errors
    /// When a program is missing, or something does not start.
    pub fn prepare(node: &Node) -> Result<Self> {
        let programs = go::build(&Cache::open()?, go::CONFORMANCE)?;
        step("filling a registry with what the tests pull");
        let registry = registry::Registry::start(&programs, node)?;
        let network = map_ports(&node.network_file())?;
        Ok(Self {
            node: node.clone(),
            programs,
            network,
            _registry: registry,
        })
    }

    /// Runs the tests with `handler`.
    ///
    /// # Errors
    /// When they cannot be run, or say nothing of how it went. Tests that failed are in the report.
    pub fn run(&self, handler: &str) -> Result<Report> {
        step(format!("running critest with {handler}"));
        let file = self
            .node
            .directory()
            .join(format!("critest-{handler}.json"));
        let mut command = Command::new(self.programs.join("critest"));
        command
            .arg(format!(
                "-runtime-endpoint=unix://{}",
                self.node.socket().display()
            ))
            .arg(format!("-runtime-handler={handler}"))
            .arg(format!("-ginkgo.json-report={}", file.display()))
            .args([
                "-ginkgo.no-color",
                "-ginkgo.timeout=12h",
                "-test.timeout=12h",
            ])
            // The same order each time.
            .arg("-ginkgo.seed=1");
        if host::is_virtual() {
            // In an emulated machine a guest crashes or stops now and then, for a reason that is not known yet.
            command.arg("-ginkgo.flake-attempts=3");
        }
        if let Some(focus) = std::env::var_os(FOCUS_VARIABLE) {
            command.arg("-ginkgo.focus").arg(focus);
        }
        let log = self.node.directory().join(format!("critest-{handler}.log"));
        follow(command, &log)?;
        let text = fs::read(&file).with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("critest has written no report; it said:\n{said}")
        })?;
        Report::read(&text)
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        // The node goes as well soon.
        let _ = fs::write(self.node.network_file(), &self.network);
    }
}

/// Has ports of the host lead to pods. Returns what the network's configuration was.
fn map_ports(file: &Path) -> Result<Vec<u8>> {
    let before = fs::read(file)?;
    let mut network: Value = serde_json::from_slice(&before)?;
    let plugins = network["plugins"].as_array_mut();
    plugins
        .context("a network without plugins")?
        .push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    fs::write(file, network.to_string())?;
    Ok(before)
}

/// Runs `command` to its end with its output in `log`, and says now and then how far it is. Its status tells no more than its report.
fn follow(mut command: Command, log: &Path) -> Result<()> {
    let mut to = File::create(log)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(to.try_clone()?)
        .spawn()
        .context("cannot run critest")?;
    let said = child.stdout.take().context("a pipe from the child")?;
    let (mut over, mut told) = (0, Instant::now());
    for line in BufReader::new(said).split(b'\n') {
        let line = line?;
        to.write_all(&line)?;
        to.write_all(b"\n")?;
        // How a test that is over begins its line, and one that was passed over.
        over += u32::from(line.starts_with("• ".as_bytes()) || line.starts_with(b"S ["));
        if told.elapsed() >= PROGRESS {
            step(format!("{over} tests are over"));
            told = Instant::now();
        }
    }
    child.wait()?;
    Ok(())
}
