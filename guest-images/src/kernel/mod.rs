//! Builds the guest's kernel of our own from a source tree of Linux.
//!
//! The configuration is [`FRAGMENT`] (`guest-images/kernel/orlop.config`) on top of `make allnoconfig`. The build stops before it has compiled
//! anything when the configuration lacks a part of the fragment ([`fragment`]).
//!
//! It is done out of tree, in a directory of its own inside of the output directory; what it yields is renamed into place when it is
//! complete. So a build that is killed leaves no half a kernel, and two at once do not meet. Time, user and host are the same in every kernel.

pub mod fragment;
mod make;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Instant;

use crate::elf;
use fragment::{Fragment, Lost};
use make::{Count, Log};

/// Our configuration.
pub const FRAGMENT: &str = include_str!("../../kernel/orlop.config");

/// What a build yields in its output directory: the kernel as an ELF file with a PVH entry point, without symbols.
pub const VMLINUX: &str = "vmlinux";
/// The same kernel, compressed, with a loader around it.
pub const BZIMAGE: &str = "bzImage";
/// The whole configuration that it has.
pub const CONFIG: &str = "config";

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source tree is something else.
    #[error("{} is not a source tree of Linux: it has no {missing}", tree.display())]
    Source {
        /// What was given.
        tree: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// The configuration is refused.
    #[error("the kernel's configuration is refused: {0}")]
    Fragment(#[from] fragment::Error),
    /// The configuration that came out is not what was asked for.
    #[error(
        "this kernel cannot have {} of the options that are asked for: {}; look for new names or needs of theirs",
        .0.len(), list(.0)
    )]
    Lost(Vec<Lost>),
    /// A program does not start.
    #[error("cannot run `{command}`: {source}; install what building a kernel takes")]
    Run {
        /// The program and its arguments.
        command: String,
        /// What the system says.
        source: io::Error,
    },
    /// A program has failed.
    #[error("`{command}` failed ({status}); the whole log is in {}, and its end is:\n{said}", log.display())]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        said: String,
        /// The log.
        log: PathBuf,
    },
    /// The kernel has no PVH entry point, or is no kernel.
    #[error("the kernel that was built cannot be used: {0}")]
    Kernel(#[from] elf::Error),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody takes the progress reports.
    #[error("cannot report progress: {0}")]
    Report(#[source] io::Error),
}

fn list(lost: &[Lost]) -> String {
    let lost: Vec<_> = lost.iter().map(Lost::to_string).collect();
    lost.join(", ")
}

/// What to build, from what, and where to.
#[derive(Debug, Clone)]
pub struct Build<'a> {
    /// The source tree. It is not written to.
    pub source: &'a Path,
    /// The configuration, a fragment.
    pub fragment: &'a str,
    /// The directory for what the build yields. It is made if need be.
    pub output: &'a Path,
    /// Where the output of the build's programs goes.
    pub log: &'a Path,
    /// How many programs run at a time.
    pub jobs: usize,
}

impl Build<'_> {
    /// Builds the kernel, and tells `report` what happens.
    ///
    /// # Errors
    /// When the source tree or the fragment is not what it should be, an option of the fragment is lost, or a step fails.
    pub fn run(&self, mut report: impl FnMut(&str) -> io::Result<()>) -> Result<(), Error> {
        let mut report = |what: &str| report(what).map_err(Error::Report);
        let fragment = Fragment::parse(self.fragment)?;
        for missing in ["Makefile", "Kconfig"] {
            if !self.source.join(missing).is_file() {
                let tree = self.source.to_owned();
                return Err(Error::Source { tree, missing });
            }
        }
        create_dir(self.output)?;
        let objects = Objects::create(self.output)?;
        let mut log = Log::create(self.log)?;

        report("configuring the kernel")?;
        let config = objects.0.join(".config");
        let ours = objects.0.join("fragment");
        fs::write(&ours, self.fragment).map_err(|source| Error::Write {
            path: ours.clone(),
            source,
        })?;
        let mut make = self.make(&objects);
        make.env("KCONFIG_ALLCONFIG", &ours).arg("allnoconfig");
        log.run(make, |_| Ok(()))?;
        let mut make = self.make(&objects);
        make.arg("olddefconfig");
        log.run(make, |_| Ok(()))?;
        let lost = fragment.lost(&String::from_utf8_lossy(&read(&config)?));
        if !lost.is_empty() {
            return Err(Error::Lost(lost));
        }

        report(&format!("compiling the kernel, {} at a time", self.jobs))?;
        let mut count = Count::start(Instant::now());
        let mut make = self.make(&objects);
        make.arg(format!("--jobs={}", self.jobs))
            .args(["vmlinux", "bzImage"]);
        log.run(make, |line| match count.line(line, Instant::now()) {
            Some(progress) => report(&progress),
            None => Ok(()),
        })?;

        let vmlinux = objects.0.join("vmlinux.stripped");
        let mut strip = clean(Command::new("strip"));
        strip
            .args(["--strip-all", "--remove-section=.comment", "-o"])
            .args([&vmlinux, &objects.0.join("vmlinux")]);
        log.run(strip, |_| Ok(()))?;
        elf::check_pvh_kernel(&read(&vmlinux)?)?;
        let bzimage = objects.0.join("arch/x86/boot/bzImage");
        let mut sizes = Vec::new();
        for (made, name) in [(config, CONFIG), (vmlinux, VMLINUX), (bzimage, BZIMAGE)] {
            let size = fs::metadata(&made)
                .map_err(|source| Error::Read {
                    path: made.clone(),
                    source,
                })?
                .len();
            let path = self.output.join(name);
            fs::rename(&made, &path).map_err(|source| Error::Write { path, source })?;
            if name != CONFIG {
                sizes.push(format!(
                    "{name} has {:.1} MiB",
                    size as f64 / f64::from(1 << 20)
                ));
            }
        }
        report(&format!(
            "the kernel is built from {} files: {}",
            count.files(),
            sizes.join(", ")
        ))
    }

    fn make(&self, objects: &Objects) -> Command {
        let mut command = clean(Command::new("make"));
        let mut output = std::ffi::OsString::from("O=");
        output.push(&objects.0);
        command
            .arg("-C")
            .arg(self.source)
            .arg(output)
            .arg("ARCH=x86_64")
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "orlop")
            .env("KBUILD_BUILD_HOST", "orlop");
        command
    }
}

/// Without what the environment might hold for other builds: flags, job servers, cross compilers, languages.
fn clean(mut command: Command) -> Command {
    command.env_clear().env("LC_ALL", "C");
    for kept in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// The directory of a build's objects, which goes with it.
struct Objects(PathBuf);

impl Objects {
    fn create(output: &Path) -> Result<Self, Error> {
        let cannot_write = |source| Error::Write {
            path: output.to_owned(),
            source,
        };
        // The build runs elsewhere, so the path must be absolute.
        let output = output.canonicalize().map_err(cannot_write)?;
        let path = output.join(format!("objects-{}", std::process::id()));
        // Left by a killed build whose process had this number.
        let _ = fs::remove_dir_all(&path);
        create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // They are of no use; what stays of them is in the way of nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
