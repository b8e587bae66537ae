//! Programs built from source by cargo.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::progress::step;

/// The release of virtiofsd that the VMM's vhost-user-fs is tested with.
const VIRTIOFSD_VERSION: &str = "1.14.0";

/// The release of fsx, which exercises file systems and looks at what comes of it.
const FSX_VERSION: &str = "0.3.2";

/// The target for which programs are linked statically: the machine's own, for Debian's toolchain image has no other. Naming it keeps what
/// the compiler itself runs, such as procedural macros, out of that.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The root of the source tree: the one in which cargo was started, or else the one where this was compiled. A checkout that was moved, or that
/// shares its target directory with another, has programs that were compiled elsewhere, for cargo does not compile them again for that.
#[must_use]
pub fn source() -> &'static Path {
    static SOURCE: LazyLock<PathBuf> = LazyLock::new(|| {
        let compiled = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut member = env::var_os("CARGO_MANIFEST_DIR").map_or_else(compiled, PathBuf::from);
        member.pop();
        member
    });
    &SOURCE
}

/// Where the programs that [`programs`] builds are.
#[must_use]
pub fn programs_directory() -> PathBuf {
    target().join(TARGET).join("release")
}

/// How the workspace's programs are compiled and linked. Statically: the agent because its guest has no libraries, the others because a program without a
/// dynamic loader starts sooner and has less memory to itself. The table of what is corrected when such a program starts is packed
/// (RELR): 9 KB rather than 737 of the agent, which a guest has in memory twice while it boots.
const PROGRAM_FLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";

/// The agent, which is of a profile of its own.
#[must_use]
pub fn agent() -> PathBuf {
    target().join(TARGET).join("agent/orlop-agent")
}

/// Builds the workspace's programs: the VMM, the shim, what offers devices to the kubelet, the image builder, the agent.
///
/// # Errors
/// When they do not compile.
pub fn programs() -> Result<()> {
    step("building orlop, containerd-shim-orlop-v2, orlop-node and orlop-image");
    // All but the agent, which is of a profile of its own.
    run(program_command(&[
        "--release",
        "--bin=orlop",
        "--bin=containerd-shim-orlop-v2",
        "--bin=orlop-node",
        "--bin=orlop-image",
        "--bin=orlop-boot-mark",
        "--bin=orlop-story-peer",
        "--package=orlop-vmm",
        "--package=orlop-shim",
        "--package=orlop-node",
        "--package=orlop-guest-images",
    ]))?;
    step("building orlop-agent, as small as it gets");
    run(program_command(&[
        "--profile=agent",
        "--package=orlop-guest-images",
        "--bin=orlop-agent",
    ]))
}

fn program_command(what: &[&str]) -> Command {
    let mut command = cargo_command();
    command
        .args(["build", "--target", TARGET])
        .args(what)
        .env("RUSTFLAGS", PROGRAM_FLAGS);
    command
}

/// Builds `orlop-bench`, and returns its path. What it measures are other programs; it shares what it is made of with the tests.
///
/// # Errors
/// When it does not compile.
pub fn benchmarks() -> Result<PathBuf> {
    step("building orlop-bench");
    let mut command = cargo_command();
    command.args(["build", "--package=orlop-benches"]);
    run(command)?;
    Ok(target().join("debug/orlop-bench"))
}

/// Builds the guest that drives its devices wrongly. It is a workspace of its own, since it has no operating system.
///
/// # Errors
/// When it does not compile.
pub fn make_hostile_guest() -> Result<()> {
    step("building the hostile guest");
    let mut command = cargo_command();
    command
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(source().join("tests/hostile-guest/Cargo.toml"))
        .arg("--target-dir")
        .arg(hostile_guest_target());
    run(command)
}

/// Where the guest is that drives its devices wrongly, an ELF file for the VMM to boot.
#[must_use]
pub fn hostile_guest() -> PathBuf {
    hostile_guest_target().join("release/hostile-guest")
}

fn hostile_guest_target() -> PathBuf {
    target().join("hostile-guest")
}

/// Builds virtiofsd from crates.io, if it is not there.
///
/// # Errors
/// When it cannot be fetched or does not compile.
pub fn virtiofsd(cache: &Cache) -> Result<()> {
    install(
        cache,
        &cache.virtiofsd(),
        "virtiofsd",
        VIRTIOFSD_VERSION,
        &[],
    )
}

/// Builds fsx from crates.io, if it is not there.
///
/// # Errors
/// When it cannot be fetched or does not compile.
pub fn fsx(cache: &Cache) -> Result<()> {
    // What it does is waiting for file systems: to build it quickly is worth more.
    install(cache, &cache.fsx(), "fsx", FSX_VERSION, &["--debug"])
}

/// Builds a program from crates.io.
fn install(cache: &Cache, program: &Path, name: &str, version: &str, how: &[&str]) -> Result<()> {
    if program.exists() {
        return Ok(());
    }
    step(format!("building {name} {version} from crates.io"));
    let mut command = cargo_command();
    command
        .args(["install", name, "--locked", "--version", version])
        .args(how)
        .arg("--root")
        .arg(cache.root())
        .arg("--target-dir")
        .arg(cache.root().join("build"))
        // Its lock file is its own; this workspace's settings are not meant for it.
        .current_dir("/");
    run(command)
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| source().join("target"), PathBuf::from)
}

/// The cargo that runs this program, in the source tree.
#[must_use]
pub fn cargo_command() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(source());
    // What `cargo run` tells this program of its own package: some packages take a change there for a reason to be built anew.
    let own = |name: &OsString| {
        let name = name.to_string_lossy();
        ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"]
            .iter()
            .any(|own| name.starts_with(own))
    };
    for (name, _) in env::vars_os().filter(|(name, _)| own(name)) {
        command.env_remove(name);
    }
    command
}

fn run(mut command: Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}; install Rust with rustup"))?;
    if !status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(|a| a.display().to_string())
            .collect();
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
