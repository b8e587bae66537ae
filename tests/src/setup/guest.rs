//! What a guest boots from: Debian's cloud kernel, and an initramfs with the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{build, debian};
use crate::cache::Cache;
use crate::host::kernel::Kernel;
use crate::progress::step;

/// Fetches Debian's cloud kernel and unpacks its ELF image.
///
/// # Errors
/// When the package cannot be had or is not what it should be.
pub fn kernel(cache: &Cache) -> Result<()> {
    let kernel = debian::kernel("linux-image-cloud-amd64", &cache.guest_kernel())?;
    if !is_newer(&cache.guest_vmlinuz(), &[&kernel.image]) {
        replace(&cache.guest_vmlinuz(), |to| {
            fs::copy(&kernel.image, to)?;
            Ok(())
        })?;
    }
    if !is_newer(&cache.guest_vmlinux(), &[&cache.guest_vmlinuz()]) {
        step("unpacking the guest's vmlinux");
        replace(&cache.guest_vmlinux(), |to| {
            let mut command = image_builder();
            command.arg("vmlinux");
            command.arg("--bzimage").arg(cache.guest_vmlinuz());
            command.arg("--output").arg(to);
            run(command)
        })?;
    }
    Ok(())
}

/// Builds the guests' two initramfs with the agent in them, one for Debian's kernel and one for our own, if those at hand are older than what
/// they are made of.
///
/// # Errors
/// When one cannot be built.
pub fn initramfs(cache: &Cache) -> Result<()> {
    let kernel = Kernel::find(&cache.guest_kernel())?;
    build_initramfs(&cache.guest_initramfs(), kernel.modules.as_deref())?;
    build_initramfs(&cache.own_initramfs(), None)
}

/// Builds the image that guests of our own kernel have in persistent memory, if the one at hand is older than the agent.
///
/// # Errors
/// When it cannot be built.
pub fn image(cache: &Cache) -> Result<()> {
    let (builder, agent) = (image_builder_path(), build::agent());
    if is_newer(&cache.own_image(), &[&agent, &builder]) {
        return Ok(());
    }
    step("building the guest's image");
    replace(&cache.own_image(), |to| {
        let mut command = image_builder();
        command.arg("image").arg("--agent").arg(&agent);
        command.arg("--output").arg(to);
        run(command)
    })
}

fn build_initramfs(to: &Path, modules: Option<&Path>) -> Result<()> {
    let builder = image_builder_path();
    let agent = build::agent();
    let sources: Vec<_> = [&*agent, &*builder].into_iter().chain(modules).collect();
    if is_newer(to, &sources) {
        return Ok(());
    }
    let of = modules.map_or("without modules", |_| "with Debian's modules");
    step(format!("building the guest's initramfs {of}"));
    replace(to, |to| {
        let mut command = image_builder();
        command.arg("initramfs");
        command.arg("--agent").arg(&agent);
        if let Some(modules) = modules {
            command.arg("--modules").arg(modules);
        }
        command.arg("--output").arg(to);
        run(command)
    })
}

fn image_builder() -> Command {
    Command::new(image_builder_path())
}

fn image_builder_path() -> PathBuf {
    build::programs_directory().join("orlop-image")
}

fn run(mut command: Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

/// True when `made` exists and none of `sources` has changed since.
fn is_newer(made: &Path, sources: &[&Path]) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let Some(made) = changed(made) else {
        return false;
    };
    sources
        .iter()
        .all(|source| changed(source).is_some_and(|source| source <= made))
}

/// Makes a file beside its final place and renames it, so that half a file is never taken for a whole one.
fn replace(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().context("a place for the file")?;
    fs::create_dir_all(parent)?;
    let directory = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(parent)?;
    let work = directory.path().join("file");
    make(&work)?;
    fs::rename(&work, path).with_context(|| format!("cannot write {}", path.display()))
}
