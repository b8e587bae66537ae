//! A QEMU that is new enough for the virtual host.
//!
//! Debian 12 packages one that is not ([`SOUND`]), and a newer one among its backports. That one is unpacked into the cache rather
//! than installed: the machine keeps the QEMU that it has, whose libraries both use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::{self, apt_get, run};
use crate::cache::Cache;
use crate::host::emulator::{Emulator, SOUND};
use crate::progress::step;

/// Debian's release whose archive has the backports, and their suite.
const RELEASE: &str = "bookworm";
const SUITE: &str = "bookworm-backports";

/// The program, its tools, its firmware.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// The keys that Debian signs its archive with, where Debian puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The QEMU to use: the installed one if it is new enough, else the backported one, fetched if need be. Where that cannot be had, the
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
                "going on with QEMU {major}.{minor}, under which a virtual host hangs now and then: {error:#}"
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
        let debs = work.join("debs");
        fs::create_dir(&debs)?;
        let mut command = apt.command();
        command
            .arg("download")
            .args(PACKAGES.map(|package| format!("{package}/{SUITE}")))
            .current_dir(&debs);
        run(&mut command)?;
        let unpacked = work.join("root");
        for package in fs::read_dir(debs)? {
            debian::unpack(&package?.path(), &unpacked)?;
        }
        let emulator = Emulator::unpacked(&unpacked).context("the packages hold no QEMU")?;
        if emulator.release()? < SOUND {
            bail!("the one in {SUITE} is no newer");
        }
        Ok(unpacked)
    })?;
    Emulator::unpacked(root).context("the unpacked QEMU has gone")
}

/// An apt with sources and lists of its own, so that the machine's stay as they are.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(work: &Path) -> Result<Self> {
        let directory = work.join("apt");
        for part in ["sources", "lists"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let archive = archive()?;
        let mut source =
            format!("Types: deb\nURIs: {archive}\nSuites: {SUITE}\nComponents: main\n");
        if Path::new(KEYRING).exists() {
            source.push_str(&format!("Signed-By: {KEYRING}\n"));
        }
        fs::write(directory.join("sources/backports.sources"), source)?;
        Ok(Self { directory })
    }

    fn command(&self) -> Command {
        let mut command = apt_get();
        let directory = self.directory.display();
        for option in [
            "APT::Sandbox::User=root".to_owned(),
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={directory}/sources"),
            format!("Dir::State::Lists={directory}/lists"),
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
