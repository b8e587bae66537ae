//! `kubectl` with the cluster's administrator behind it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Files, NODE, Programs};
use crate::setup::build;

/// How often is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(300);

/// A `kubectl` and whom it speaks for.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    /// The one of `programs`, as the administrator of the cluster with these `files`.
    #[must_use]
    pub fn new(programs: &Programs, files: &Files) -> Self {
        Self {
            program: programs.kubernetes.join("kubectl"),
            config: files.kubeconfig("admin"),
            namespace: None,
        }
    }

    /// The one of the cluster that this process runs beside, if it does.
    #[must_use]
    pub fn attach() -> Option<Self> {
        Some(Self::new(&Programs::get().ok()?, &Files::attach()?))
    }

    /// The same for the objects of a namespace.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..self
        }
    }

    /// The command itself, to be given arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Manifests of the source tree are named as a user there names them.
        command.current_dir(build::source());
        command.arg("--kubeconfig").arg(&self.config);
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command
    }

    /// Runs it to its end, with `input` for its standard input.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn output(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        let mut to = child.stdin.take().context("a pipe to the child")?;
        let input = input.to_owned();
        let writer = thread::spawn(move || to.write_all(&input));
        let output = child.wait_with_output()?;
        // A command that does not read what it is given ends all the same.
        let _ = writer.join();
        Ok(output)
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run, or says that something went wrong.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, &[])
    }

    /// The same with `input` for its standard input.
    ///
    /// # Errors
    /// See above.
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Result<String> {
        let done = self.output(arguments, input)?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When they are refused.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.run_with(&["apply", "--filename", "-"], manifests.as_bytes())
            .map(drop)
    }

    /// An object as JSON; nothing for one that is not there.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn get(&self, what: &[&str]) -> Result<Option<Value>> {
        let mut arguments = vec!["get", "--ignore-not-found", "--output=json"];
        arguments.extend(what);
        let said = self.run(&arguments)?;
        if said.trim().is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&said)?))
    }

    /// Waits until `look` has found what it looks for.
    ///
    /// # Errors
    /// When it fails, or `limit` has passed; `what` tells what was waited for.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if Instant::now() > end {
                bail!("after {} s there is still no {what}", limit.as_secs());
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether the API server is ready.
    pub(super) fn server_is_ready(&self) -> bool {
        self.output(&["get", "--raw", "/readyz"], &[])
            .is_ok_and(|done| done.status.success())
    }

    /// Whether another server serves an API.
    pub(super) fn api_is_available(&self, name: &str) -> bool {
        let service = self.get(&["apiservice", name]).ok().flatten();
        service.is_some_and(|service| has_condition(&service, "Available"))
    }

    /// Which of its lives the node has told of last.
    pub(super) fn node_boot(&self) -> Result<String> {
        let node = self.get(&["node", NODE])?.context("there is no node")?;
        let boot = node.pointer("/status/nodeInfo/bootID");
        Ok(boot.and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Whether the node is ready.
    pub(super) fn node_is_ready(&self) -> bool {
        let node = self.get(&["node", NODE]).ok().flatten();
        node.is_some_and(|node| has_condition(&node, "Ready"))
    }
}

/// Whether an object's status has a condition that is true.
#[must_use]
pub fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        let field = |name| condition.get(name).and_then(Value::as_str);
        field("type") == Some(kind) && field("status") == Some("True")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::has_condition;

    #[test]
    fn a_condition_counts_when_it_is_true() {
        let object = json!({"status": {"conditions": [
            {"type": "Ready", "status": "False"}, {"type": "Initialized", "status": "True"},
        ]}});
        assert!(has_condition(&object, "Initialized"));
        assert!(!has_condition(&object, "Ready"));
        assert!(!has_condition(&object, "Other"));
        assert!(!has_condition(&json!({}), "Ready"));
    }
}
