//! Programs written in Go, built from modules whose versions a `go.mod` in the source tree pins, and kept in the cache.
//!
//! Each set is a module of its own that has nothing but `tool` lines, so that no set decides the versions of another.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::build;
use crate::cache::Cache;
use crate::progress::step;

/// The first Go that fetches by itself the newer one that a `go.mod` asks for.
const OLDEST: (u32, u32) = (1, 21);

/// How often a build says how far it is.
const PROGRESS: Duration = Duration::from_secs(20);

/// A set of programs.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// What people call it.
    pub name: &'static str,
    /// The directory of its `go.mod`, below `tests/k8s`.
    pub directory: &'static str,
    /// The module whose version the programs say is theirs, and the packages that hold it, as Kubernetes' own build has it.
    version: Option<(&'static str, &'static [&'static str])>,
    /// Packages that are tests to be run as programs, which no `tool` line can name.
    tests: &'static [&'static str],
}

/// Kubernetes: the control plane with its etcd, and the programs of a node.
pub const KUBERNETES: Set = Set {
    name: "Kubernetes",
    directory: "kubernetes",
    version: Some((
        "k8s.io/kubernetes",
        &[
            "k8s.io/component-base/version",
            "k8s.io/client-go/pkg/version",
        ],
    )),
    tests: &[],
};

/// What a node has besides: containerd 2, plugins for the pods' network.
pub const NODE: Set = Set {
    name: "containerd and the network's plugins",
    directory: "node",
    version: None,
    tests: &[],
};

/// The last containerd of the 1.x.
pub const CONTAINERD_1: Set = Set {
    name: "containerd 1.7",
    directory: "containerd-1.7",
    version: None,
    tests: &[],
};

/// Names for a cluster's services.
pub const COREDNS: Set = Set {
    name: "CoreDNS",
    directory: "coredns",
    version: None,
    tests: &[],
};

/// Figures of what a cluster's pods use.
pub const METRICS: Set = Set {
    name: "metrics-server",
    directory: "metrics-server",
    version: None,
    tests: &[],
};

/// The tests of runtimes that the CRI's authors have written, and a registry to pull from.
pub const CONFORMANCE: Set = Set {
    name: "critest and a registry",
    directory: "conformance",
    version: None,
    tests: &["sigs.k8s.io/cri-tools/cmd/critest"],
};

/// Builds the programs of `set`, if those at hand are not of its `go.mod`. Returns the directory that they are in.
///
/// # Errors
/// When there is no Go, or something cannot be fetched or does not compile.
pub fn build(cache: &Cache, set: Set) -> Result<PathBuf> {
    let source = build::source().join("tests/k8s").join(set.directory);
    let pinned = pins(&source)?;
    let place = cache.go_programs(set.directory, &digest(&pinned));
    if place.is_dir() {
        return Ok(place);
    }
    check_toolchain()?;
    step(format!(
        "building {} from Go modules, once; Kubernetes takes some 15 minutes of two processors, others five",
        set.name
    ));
    let parent = place.parent().context("the cache has no parent")?;
    fs::create_dir_all(parent)?;
    let work = tempfile::Builder::new()
        .prefix("building-")
        .tempdir_in(parent)?;
    let flags = linker_flags(set, &pinned)?;
    compile(&source, &flags, work.path())?;
    for package in set.tests {
        compile_tests(&source, &flags, package, work.path())?;
    }
    match fs::rename(work.path(), &place) {
        Ok(()) => {
            // Its place is another one now.
            let _ = work.keep();
            Ok(place)
        }
        // Another process has built the same meanwhile.
        Err(_) if place.is_dir() => Ok(place),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", place.display())),
    }
}

/// `go.mod` and `go.sum`: what decides which sources are built.
fn pins(source: &Path) -> Result<String> {
    let mut pins = String::new();
    for file in ["go.mod", "go.sum"] {
        let path = source.join(file);
        pins += &fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(pins)
}

fn digest(pins: &str) -> String {
    let digest = Sha256::digest(pins.as_bytes());
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn go(source: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(source).env("CGO_ENABLED", "0");
    command
}

fn check_toolchain() -> Result<()> {
    let (major, minor) = OLDEST;
    let wanted = format!("Go {major}.{minor} or newer is needed");
    let output = go(Path::new("/")).arg("version").output();
    let output = output.with_context(|| format!("cannot run go; {wanted}, in PATH"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match release(&said) {
        Some(found) if found >= OLDEST => Ok(()),
        _ => bail!("{wanted}; this one is: {}", said.trim()),
    }
}

/// The release in `go version go1.26.8 linux/amd64`.
fn release(said: &str) -> Option<(u32, u32)> {
    let version = said.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The flags with which the programs say their version, and have no symbols for a debugger.
fn linker_flags(set: Set, pins: &str) -> Result<String> {
    let mut flags = "-s -w".to_owned();
    let Some((module, packages)) = set.version else {
        return Ok(flags);
    };
    let version = required(pins, module)
        .with_context(|| format!("{}/go.mod does not require {module}", set.directory))?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next(), numbers.next());
    let (major, minor) = major.zip(minor).context("a version has two numbers")?;
    for package in packages {
        for (variable, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags += &format!(" -X {package}.{variable}={value}");
        }
    }
    Ok(flags)
}

/// The version of `module` that a `go.mod` requires.
fn required<'t>(text: &'t str, module: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let line = line.trim().trim_start_matches("require ");
        let version = line.strip_prefix(module)?.trim_start();
        version
            .starts_with('v')
            .then(|| version.split(' ').next())?
    })
}

/// Compiles all `tool` lines, and says now and then how many packages are done.
fn compile(source: &Path, flags: &str, to: &Path) -> Result<()> {
    let all = go(source).args(["list", "-deps", "tool"]).output()?;
    if !all.status.success() {
        let said = String::from_utf8_lossy(&all.stderr);
        bail!("cannot fetch the Go modules: {}", said.trim());
    }
    let all = String::from_utf8_lossy(&all.stdout).lines().count();
    let mut child = go(source)
        .args(["build", "-v", "-trimpath", "-ldflags", flags, "-o"])
        .arg(to)
        .arg("tool")
        .stderr(Stdio::piped())
        .spawn()?;
    let said = child.stderr.take().context("a pipe from the child")?;
    let (mut done, mut told, mut last) = (0, Instant::now(), Vec::new());
    for line in BufReader::new(said).lines() {
        let line = line?;
        done += 1;
        if told.elapsed() >= PROGRESS {
            step(format!("{done} of at most {all} packages are compiled"));
            told = Instant::now();
        }
        // What went wrong is at the end.
        last.push(line);
        if last.len() > 30 {
            last.remove(0);
        }
    }
    if !child.wait()?.success() {
        bail!("go build failed:\n{}", last.join("\n"));
    }
    Ok(())
}

/// Compiles a package of tests to a program of the package's name.
fn compile_tests(source: &Path, flags: &str, package: &str, to: &Path) -> Result<()> {
    let name = package.rsplit('/').next().unwrap_or(package);
    let output = go(source)
        .args(["test", "-c", "-trimpath", "-ldflags", flags, "-o"])
        .arg(to.join(name))
        .arg(package)
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("go test -c {package} failed:\n{}", said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_from_what_go_says() {
        assert_eq!(release("go version go1.26.8 linux/amd64\n"), Some((1, 26)));
        assert_eq!(release("go version devel linux/amd64"), None);
        assert_eq!(release(""), None);
    }

    #[test]
    fn the_sets_in_the_tree_say_their_versions() {
        let source = build::source().join("tests/k8s").join(KUBERNETES.directory);
        let flags = linker_flags(KUBERNETES, &pins(&source).unwrap()).unwrap();
        assert!(
            flags.contains("k8s.io/component-base/version.gitVersion=v1."),
            "{flags}"
        );
        let source = build::source().join("tests/k8s").join(NODE.directory);
        assert_eq!(
            linker_flags(NODE, &pins(&source).unwrap()).unwrap(),
            "-s -w"
        );
    }

    #[test]
    fn a_version_is_that_of_the_module_and_not_of_one_with_a_longer_name() {
        let text = "require (\n\ta.b/c/d v2.0.0\n\ta.b/c v1.2.3 // indirect\n)\n";
        assert_eq!(required(text, "a.b/c"), Some("v1.2.3"));
        assert_eq!(required("require a.b/c v1.0.0", "a.b/c"), Some("v1.0.0"));
        assert_eq!(required(text, "x"), None);
    }

    #[test]
    fn other_pins_are_another_place() {
        assert_ne!(digest("a"), digest("b"));
        assert_eq!(digest("a").len(), 16);
    }
}
