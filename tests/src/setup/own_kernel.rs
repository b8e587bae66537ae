//! The guest's kernel of our own: Linux' sources as Debian packages them, and the configuration in `guest-images/kernel/orlop.config`.
//!
//! Building it takes some ten minutes of two processors and 3 GiB of disk, of which 25 MiB stay. What it was built from is written beside
//! it, and the next build looks there first.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{build, debian};
use crate::cache::Cache;
use crate::progress::step;

/// Debian's package of the sources.
const PACKAGE: &str = "linux-source-6.12";

/// The configuration, in the source tree.
const CONFIG: &str = "guest-images/kernel/orlop.config";

/// The working directories of builds. One that is there when nobody builds is of a build that was killed.
const WORK: &str = "building-";

/// Builds the kernel, if the one at hand is not of this configuration and of the sources that Debian has now. Returns its ELF file.
///
/// # Errors
/// When something is missing and cannot be installed, or a step fails.
pub fn build() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let config = build::source().join(CONFIG);
    let config = fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let wanted = origin(&config, &debian::version(PACKAGE)?);
    if is_built(&cache, &wanted) {
        step("the guest's kernel of our own is in place");
        return Ok(cache.own_vmlinux());
    }
    let directory = cache.own_kernel();
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let _lock = lock(&directory)?;
    // Another process may have built it meanwhile.
    if !is_built(&cache, &wanted) {
        clear(&directory)?;
        build_from(&cache, &config)?;
    }
    Ok(cache.own_vmlinux())
}

/// Fetches the sources and builds them with `config`.
fn build_from(cache: &Cache, config: &[u8]) -> Result<()> {
    debian::install(debian::KERNEL_BUILD)?;
    build::programs()?;
    let directory = cache.own_kernel();
    let work = tempfile::Builder::new()
        .prefix(WORK)
        .tempdir_in(&directory)?;
    let (source, version) = unpack_source(work.path())?;
    let fragment = work.path().join("orlop.config");
    fs::write(&fragment, config)?;
    let output = work.path().join("made");
    let mut command = Command::new(build::programs_directory().join("orlop-image"));
    command.arg("kernel").arg("--source").arg(&source);
    command.arg("--config").arg(&fragment);
    command.arg("--output").arg(&output);
    // It outlives the working directory.
    command.arg("--log").arg(directory.join("build.log"));
    run_with_progress(command)?;
    let origin_file = origin_file(cache);
    // It comes last and goes first: where it is, all else is as it says.
    if origin_file.exists() {
        fs::remove_file(&origin_file)?;
    }
    for made in ["config", "vmlinux", "bzImage"] {
        let to = directory.join(made);
        fs::rename(output.join(made), &to)
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    let partial = work.path().join("origin");
    fs::write(&partial, origin(config, &version))?;
    fs::rename(&partial, &origin_file)
        .with_context(|| format!("cannot write {}", origin_file.display()))
}

/// Fetches the sources and unpacks them below `work`. Returns their directory and their version.
fn unpack_source(work: &Path) -> Result<(PathBuf, String)> {
    let fetched = work.join("package");
    fs::create_dir(&fetched)?;
    let archive = debian::fetch(PACKAGE, &fetched)?;
    let version = debian::archive_version(&archive)?;
    step(format!("unpacking {PACKAGE} {version}"));
    let unpacked = work.join("root");
    debian::unpack(&archive, &unpacked)?;
    let tar = unpacked.join("usr/src").join(format!("{PACKAGE}.tar.xz"));
    debian::run(Command::new("tar").arg("-C").arg(work).arg("-xf").arg(&tar))?;
    for done in [fetched, unpacked] {
        fs::remove_dir_all(done)?;
    }
    Ok((work.join(PACKAGE), version))
}

/// Runs the image builder, each of whose lines is a step.
fn run_with_progress(mut command: Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let output = child.stdout.take().context("a pipe from the child")?;
    for line in BufReader::new(output).lines() {
        step(line?);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the guest's kernel was not built");
    }
    Ok(())
}

/// What a kernel is built from, as it is written beside it.
fn origin(config: &[u8], version: &str) -> String {
    let digest: String = Sha256::digest(config)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{PACKAGE} {version}\n{CONFIG} sha256:{digest}\n")
}

fn origin_file(cache: &Cache) -> PathBuf {
    cache.own_kernel().join("origin")
}

fn is_built(cache: &Cache, origin: &str) -> bool {
    cache.own_vmlinux().is_file()
        && cache.own_bzimage().is_file()
        && fs::read_to_string(origin_file(cache)).is_ok_and(|found| found == origin)
}

/// Lets one process build at a time. The lock goes with the file that is returned, or with the process.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        step("waiting for another process that builds the guest's kernel");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Removes what killed builds have left. The caller holds the lock.
fn clear(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(WORK.as_bytes())
        {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_built_when_all_of_it_is_there_and_of_this_origin() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let wanted = origin(b"CONFIG_A=y\n", "6.12.1-1");
        assert!(!is_built(&cache, &wanted));
        fs::create_dir_all(cache.own_kernel()).unwrap();
        fs::write(origin_file(&cache), &wanted).unwrap();
        fs::write(cache.own_vmlinux(), "").unwrap();
        assert!(!is_built(&cache, &wanted), "there is no bzImage");
        fs::write(cache.own_bzimage(), "").unwrap();
        assert!(is_built(&cache, &wanted));
        assert!(!is_built(&cache, &origin(b"CONFIG_A=m\n", "6.12.1-1")));
        assert!(!is_built(&cache, &origin(b"CONFIG_A=y\n", "6.12.1-2")));
        fs::remove_file(origin_file(&cache)).unwrap();
        assert!(!is_built(&cache, &wanted));
    }

    #[test]
    fn what_killed_builds_left_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("building-x/made/objects")).unwrap();
        fs::write(dir.path().join("vmlinux"), "").unwrap();
        clear(dir.path()).unwrap();
        assert!(!dir.path().join("building-x").exists());
        assert!(dir.path().join("vmlinux").exists());
    }

    #[test]
    fn one_process_builds_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let again = File::open(dir.path().join("lock")).unwrap();
        assert!(again.try_lock().is_err());
        drop(held);
        again.try_lock().unwrap();
    }

    #[test]
    fn our_configuration_is_where_it_is_looked_for() {
        assert!(build::source().join(CONFIG).is_file());
    }
}
