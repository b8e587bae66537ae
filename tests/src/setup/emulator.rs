//! A QEMU that is new enough for the virtual host.
//!
//! Debian 12 has none that is ([`SOUND`]), nor have its backports; those of Debian 13 have. It is unpacked into the cache with everything
//! that it depends on, down to the C library, and nothing of it is installed: the machine keeps the QEMU and the libraries that it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::{self, apt_get, run};
use crate::cache::Cache;
use crate::host::emulator::{Emulator, SOUND};
use crate::progress::step;

/// The release of Debian that this machine has.
const RELEASE: &str = "bookworm";

/// The suites that have the emulator and what it depends on. The archive of [`RELEASE`] has them all.
const SUITES: &str = "trixie trixie-backports";

/// The suite of the emulator itself.
const SUITE: &str = "trixie-backports";

/// The emulator's package.
const PACKAGE: &str = "qemu-system-x86";

/// The keys that Debian signs its archive with, where Debian puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The QEMU to use: the installed one if it is new enough, else the unpacked one, fetched if need be. Where that cannot be had, the
/// installed one does it as well as it can, and a line says so.
///
/// # Errors
/// When the installed one does not run.
pub fn get(cache: &Cache) -> Result<Emulator> {
    let root = cache.emulator();
    if let Some(unpacked) = Emulator::unpacked(&root) {
        return Ok(unpacked);
    }
    let installed = Emulator::installed();
    let (major, minor) = installed.release()?;
    if (major, minor) >= SOUND {
        return Ok(installed);
    }
    match fetch(&root) {
        Ok(unpacked) => Ok(unpacked),
        Err(error) => {
            step(format!(
                "going on with QEMU {major}.{minor}, under which a virtual host or a guest in it hangs now and then: {error:#}"
            ));
            Ok(installed)
        }
    }
}

fn fetch(root: &Path) -> Result<Emulator> {
    debian::place(root, |work| {
        step(format!("fetching QEMU from {SUITE}"));
        let apt = Apt::new(work)?;
        run(apt.command().arg("update"))?;
        let mut command = apt.command();
        command.args([
            "install",
            "--download-only",
            "--yes",
            "--no-install-recommends",
        ]);
        command
            .arg(format!("{PACKAGE}/{SUITE}"))
            .args(["--target-release", SUITE]);
        run(&mut command)?;
        step("unpacking QEMU");
        let unpacked = work.join("root");
        for package in fs::read_dir(apt.archives())? {
            let package = package?.path();
            if package
                .extension()
                .is_some_and(|extension| extension == "deb")
            {
                debian::unpack(&package, &unpacked)?;
            }
        }
        let emulator = Emulator::unpacked(&unpacked).context("the packages hold no QEMU")?;
        if emulator.release()? < SOUND {
            bail!("the one in {SUITE} is no newer");
        }
        Ok(unpacked)
    })?;
    Emulator::unpacked(root).context("the unpacked QEMU has gone")
}

/// An apt with sources, lists and a state of its own, in which nothing is installed: so what it fetches is whole.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(work: &Path) -> Result<Self> {
        let directory = work.join("apt");
        for part in ["sources", "lists", "archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let archive = archive()?;
        let mut source =
            format!("Types: deb\nURIs: {archive}\nSuites: {SUITES}\nComponents: main\n");
        if Path::new(KEYRING).exists() {
            source.push_str(&format!("Signed-By: {KEYRING}\n"));
        }
        fs::write(directory.join("sources/emulator.sources"), source)?;
        fs::write(directory.join("status"), "")?;
        Ok(Self { directory })
    }

    /// Where fetched packages are.
    fn archives(&self) -> PathBuf {
        self.directory.join("archives")
    }

    fn command(&self) -> Command {
        let mut command = apt_get();
        let directory = self.directory.display();
        for option in [
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={directory}/sources"),
            format!("Dir::State::Lists={directory}/lists"),
            format!("Dir::State::Status={directory}/status"),
            format!("Dir::Cache::Archives={directory}/archives"),
            "Dir::Cache::PkgCache=".to_owned(),
            "Dir::Cache::SrcPkgCache=".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Where this machine gets Debian from.
fn archive() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)"])
        .arg("Created-By: Packages")
        .output()
        .context("cannot run apt-get; this needs Debian 12")?;
    find_archive(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("apt's sources have no {RELEASE}; this needs Debian 12"))
}

fn find_archive(targets: &str) -> Option<String> {
    targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(codename, _)| *codename == RELEASE)
        .map(|(_, archive)| archive.to_owned())
}

#[cfg(test)]
mod tests {
    use super::find_archive;

    #[test]
    fn the_archive_is_that_of_the_release_itself() {
        let targets = "bookworm-security http://a/security/\nbookworm http://a/debian/\n";
        assert_eq!(find_archive(targets).as_deref(), Some("http://a/debian/"));
        assert_eq!(find_archive("trixie http://a/debian/\n"), None);
        assert_eq!(find_archive(""), None);
    }
}
