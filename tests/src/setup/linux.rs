//! Kernels of our own: Linux' sources as Debian packages them, and a configuration.
//!
//! Building one takes some ten minutes of two processors and 3 GiB of disk, of which 25 MiB stay. What it was built from is written beside
//! it, and the next build looks there first.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{build, debian};
use crate::progress::step;

/// Debian's package of the sources.
const PACKAGE: &str = "linux-source-6.12";

/// The working directories of builds. One that is there when nobody builds is of a build that was killed.
const WORK: &str = "building-";

/// What a build yields.
const MADE: [&str; 3] = ["config", "vmlinux", "bzImage"];

/// A kernel to have.
pub struct Linux {
    /// What it is called in messages.
    pub name: &'static str,
    /// Its options, for `make allnoconfig`. The file that they are from is named in [`Self::about`].
    pub config: String,
    /// Where the options are from, for people.
    pub about: &'static str,
    /// The directory in the cache in which what was built stays.
    pub directory: PathBuf,
}

impl Linux {
    /// Builds the kernel, if the one at hand is not of this configuration and of the sources that Debian has now.
    ///
    /// # Errors
    /// When something is missing and cannot be installed, or a step fails.
    pub fn build(&self) -> Result<()> {
        let wanted = self.origin(&debian::version(PACKAGE)?);
        if self.is_built(&wanted) {
            step(format!("{} is in place", self.name));
            return Ok(());
        }
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))?;
        let _lock = self.lock()?;
        // Another process may have built it meanwhile.
        if !self.is_built(&wanted) {
            clear(&self.directory)?;
            self.make()?;
        }
        Ok(())
    }

    /// Fetches the sources and builds them.
    fn make(&self) -> Result<()> {
        debian::install(debian::KERNEL_BUILD)?;
        build::programs()?;
        step(format!("building {}", self.name));
        let work = tempfile::Builder::new()
            .prefix(WORK)
            .tempdir_in(&self.directory)?;
        let (source, version) = unpack_source(work.path())?;
        let fragment = work.path().join("fragment");
        fs::write(&fragment, &self.config)?;
        let output = work.path().join("made");
        let mut command = Command::new(build::programs_directory().join("orlop-image"));
        command.arg("kernel").arg("--source").arg(&source);
        command.arg("--config").arg(&fragment);
        command.arg("--output").arg(&output);
        // It outlives the working directory.
        command.arg("--log").arg(self.directory.join("build.log"));
        run_with_progress(command).with_context(|| format!("{} was not built", self.name))?;
        let origin_file = self.origin_file();
        // It comes last and goes first: where it is, all else is as it says.
        if origin_file.exists() {
            fs::remove_file(&origin_file)?;
        }
        for made in MADE {
            let to = self.directory.join(made);
            fs::rename(output.join(made), &to)
                .with_context(|| format!("cannot write {}", to.display()))?;
        }
        let partial = work.path().join("origin");
        fs::write(&partial, self.origin(&version))?;
        fs::rename(&partial, &origin_file)
            .with_context(|| format!("cannot write {}", origin_file.display()))
    }

    /// What it is built from, as it is written beside it.
    fn origin(&self, version: &str) -> String {
        let digest: String = Sha256::digest(&self.config)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{PACKAGE} {version}\n{} sha256:{digest}\n", self.about)
    }

    fn origin_file(&self) -> PathBuf {
        self.directory.join("origin")
    }

    fn is_built(&self, origin: &str) -> bool {
        MADE.iter().all(|made| self.directory.join(made).is_file())
            && fs::read_to_string(self.origin_file()).is_ok_and(|found| found == origin)
    }

    /// Lets one process build at a time. The lock goes with the file that is returned, or with the process.
    fn lock(&self) -> Result<File> {
        let path = self.directory.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if file.try_lock().is_err() {
            step(format!(
                "waiting for another process that builds {}",
                self.name
            ));
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
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
        bail!("the build ended with {status}; its log has why");
    }
    Ok(())
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

    fn of(config: &str, directory: &Path) -> Linux {
        Linux {
            name: "a kernel",
            config: config.into(),
            about: "a.config",
            directory: directory.to_owned(),
        }
    }

    #[test]
    fn a_kernel_is_built_when_all_of_it_is_there_and_of_this_origin() {
        let dir = tempfile::tempdir().unwrap();
        let linux = of("CONFIG_A=y\n", dir.path());
        let wanted = linux.origin("6.12.1-1");
        assert!(!linux.is_built(&wanted));
        fs::write(linux.origin_file(), &wanted).unwrap();
        fs::write(dir.path().join("config"), "").unwrap();
        fs::write(dir.path().join("vmlinux"), "").unwrap();
        assert!(!linux.is_built(&wanted), "there is no bzImage");
        fs::write(dir.path().join("bzImage"), "").unwrap();
        assert!(linux.is_built(&wanted));
        let other = of("CONFIG_A=m\n", dir.path());
        assert!(!other.is_built(&other.origin("6.12.1-1")));
        assert!(!linux.is_built(&linux.origin("6.12.1-2")));
        fs::remove_file(linux.origin_file()).unwrap();
        assert!(!linux.is_built(&wanted));
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
        let held = of("", dir.path()).lock().unwrap();
        let again = File::open(dir.path().join("lock")).unwrap();
        assert!(again.try_lock().is_err());
        drop(held);
        again.try_lock().unwrap();
    }
}
