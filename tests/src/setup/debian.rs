//! Debian packages: installed, or only unpacked.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::host::kernel::Kernel;
use crate::progress::step;

/// A file that a package brings, and the package. The file is what is looked for: it tells in no time whether the package is there.
pub type Package = (&'static str, &'static str);

/// What the virtual host needs.
pub const VIRTUAL_HOST: &[Package] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/bin/busybox", "busybox-static"),
    ("/sbin/depmod", "kmod"),
];

/// What runs containers, and gives pods a network.
pub const CONTAINERS: &[Package] = &[
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/mkfs.erofs", "erofs-utils"),
];

/// The runtime of containers that Orlop's pods are measured beside, besides runc. (gVisor's wants a shim of its own, which Debian has not.)
pub const CRUN: Package = ("/usr/bin/crun", "crun");

/// What makes a guest's image.
pub const GUEST_IMAGE: &[Package] = &[("/usr/bin/mkfs.erofs", "erofs-utils")];

/// What building virtiofsd takes.
pub const VIRTIOFSD_BUILD: &[Package] = &[
    ("/usr/include/cap-ng.h", "libcap-ng-dev"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("/usr/bin/pkg-config", "pkg-config"),
    ("/usr/bin/gcc", "gcc"),
];

/// What tests compare Orlop's own work with.
pub const REFERENCES: &[Package] = &[
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/umoci", "umoci"),
    ("/usr/bin/skopeo", "skopeo"),
];

/// What stories send and receive by, here and in their guests.
pub const TRAFFIC: &[Package] = &[
    ("/usr/bin/iperf3", "iperf3"),
    ("/usr/bin/ping", "iputils-ping"),
    ("/usr/sbin/iptables", "iptables"),
];

/// What a cluster needs besides its own programs.
pub const CLUSTER: &[Package] = &[
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/sbin/iptables", "iptables"),
];

/// What makes a load for devices that are measured.
pub const LOADS: &[Package] = &[
    ("/usr/bin/fio", "fio"),
    ("/usr/bin/socat", "socat"),
    ("/usr/bin/ping", "iputils-ping"),
];

/// What building a kernel takes.
pub const KERNEL_BUILD: &[Package] = &[
    ("/usr/bin/bc", "bc"),
    ("/usr/bin/bison", "bison"),
    ("/usr/bin/flex", "flex"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/lz4", "lz4"),
    ("/usr/bin/make", "make"),
    ("/usr/bin/perl", "perl"),
    ("/usr/bin/xz", "xz-utils"),
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// Installs those of `packages` that are missing.
///
/// # Errors
/// When this is not Debian, not root, or the packages cannot be fetched.
pub fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!("these packages are missing and only root may install them: {names}");
    }
    update()?;
    step(format!("installing {names}"));
    let mut command = apt_get();
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing);
    run(&mut command).with_context(|| format!("cannot install {names}"))
}

/// Unpacks the kernel that the meta package `meta` stands for to `root`, if it is not there.
///
/// # Errors
/// When the package cannot be fetched or unpacked.
pub fn kernel(meta: &str, root: &Path) -> Result<Kernel> {
    if let Ok(kernel) = Kernel::find(root) {
        return Ok(kernel);
    }
    let package = match kernel_package(meta)? {
        Some(package) => package,
        None => {
            update()?;
            kernel_package(meta)?.with_context(|| {
                format!("Debian's package lists do not know {meta}; this needs Debian 12")
            })?
        }
    };
    place(root, |work| {
        let archive = fetch(&package, work)?;
        step(format!("unpacking {package}"));
        let unpacked = work.join("root");
        unpack(&archive, &unpacked)?;
        decompress_modules(&unpacked)?;
        let version = package.trim_start_matches("linux-image-");
        run(Command::new("depmod")
            .arg("-b")
            .args([unpacked.as_os_str(), OsStr::new(version)]))?;
        Ok(unpacked)
    })?;
    Kernel::find(root)
}

/// Decompresses the kernel modules below `root`, which newer kernels' packages compress: what loads them in a guest may be unable to.
fn decompress_modules(root: &Path) -> Result<()> {
    /// Files by one call.
    const AT_ONCE: usize = 500;
    let mut compressed = Vec::new();
    let mut directories = vec![root.join("lib/modules")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if entry.path().extension() == Some(OsStr::new("xz")) {
                compressed.push(entry.path());
            }
        }
    }
    if !compressed.is_empty() {
        install(&[("/usr/bin/xz", "xz-utils")])?;
    }
    for files in compressed.chunks(AT_ONCE) {
        run(Command::new("xz")
            .args(["--decompress", "--quiet"])
            .args(files))?;
    }
    Ok(())
}

/// Makes the directory `root`: `make` does it somewhere below the directory that it is given and says where, and the result is
/// renamed, so that half of it is never taken for the whole.
///
/// # Errors
/// When `make` fails, or there is no room.
pub(super) fn place(root: &Path, make: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
    let parent = root.parent().context("a place in the cache")?;
    fs::create_dir_all(parent)?;
    let work = tempfile::Builder::new()
        .prefix("unpacking-")
        .tempdir_in(parent)?;
    let made = make(work.path())?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    match fs::rename(&made, root) {
        // Another process was quicker, and what it made is as good.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => Ok(result?),
    }
}

/// The version of `package` that would be fetched now.
///
/// # Errors
/// When the package lists do not know it.
pub fn version(package: &str) -> Result<String> {
    if let Some(version) = listed_version(package)? {
        return Ok(version);
    }
    update()?;
    listed_version(package)?.with_context(|| {
        format!("Debian's package lists do not know {package}; this needs Debian 12")
    })
}

fn listed_version(package: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["show", "--no-all-versions", package])
        .output()
        .context("cannot run apt-cache; this needs Debian 12")?;
    Ok(field(&String::from_utf8_lossy(&output.stdout), "Version"))
}

/// The version of the package in the file `archive`.
///
/// # Errors
/// When the file is no package.
pub fn archive_version(archive: &Path) -> Result<String> {
    let output = Command::new("dpkg-deb")
        .arg("--info")
        .args([archive.as_os_str(), OsStr::new("control")])
        .output()
        .context("cannot run dpkg-deb; this needs Debian 12")?;
    field(&String::from_utf8_lossy(&output.stdout), "Version")
        .with_context(|| format!("{} is not a Debian package", archive.display()))
}

/// A field of a package's description.
fn field(description: &str, name: &str) -> Option<String> {
    description
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// Fetches `package` into the empty directory `to`, and returns its file.
///
/// # Errors
/// When it cannot be fetched.
pub fn fetch(package: &str, to: &Path) -> Result<PathBuf> {
    step(format!("fetching {package}"));
    if download(&[package], to).is_err() {
        // The lists are older than what the archive now holds.
        update()?;
        download(&[package], to)
            .with_context(|| format!("cannot fetch the Debian package {package}"))?;
    }
    only_file(to)
}

/// Fetches `packages` into the empty directory `to`, and returns their files.
///
/// # Errors
/// When one cannot be fetched.
pub fn fetch_all(packages: &[&str], to: &Path) -> Result<Vec<PathBuf>> {
    step(format!("fetching {} packages of Debian's", packages.len()));
    if download(packages, to).is_err() {
        update()?;
        download(packages, to).context("cannot fetch Debian's packages")?;
    }
    let files = fs::read_dir(to)?;
    Ok(files
        .map(|file| Ok(file?.path()))
        .collect::<io::Result<_>>()?)
}

/// Unpacks the package in the file `archive` to the directory `to`.
///
/// # Errors
/// When it is damaged, or the disk is full.
pub fn unpack(archive: &Path, to: &Path) -> Result<()> {
    run(Command::new("dpkg").arg("-x").args([archive, to]))
}

/// The package with the kernel that a meta package depends on.
fn kernel_package(meta: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["depends", "--no-recommends", meta])
        .output()
        .context("cannot run apt-cache; this needs Debian 12")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned))
}

fn download(packages: &[&str], to: &Path) -> Result<()> {
    let mut command = apt_get();
    // Not as the user _apt, who cannot write below a home directory.
    command
        .args(["-o", "APT::Sandbox::User=root", "download"])
        .args(packages)
        .current_dir(to);
    run(&mut command)
}

fn only_file(directory: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(directory)?;
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file?.path()),
        _ => bail!("{} does not hold exactly one package", directory.display()),
    }
}

fn update() -> Result<()> {
    step("fetching Debian's package lists");
    // A third party's list that cannot be had is no reason to stop: what is missing shows when it is asked for.
    if let Err(error) = run(apt_get().arg("update")) {
        step(format!("going on with the lists at hand: {error:#}"));
    }
    Ok(())
}

pub(super) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Runs a command whose output is of interest only when it fails.
///
/// # Errors
/// When it does, with what it said.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{name} failed ({}): {}", output.status, said.trim());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_field() {
        let text = "Package: linux-source-6.12\nVersion: 6.12.117-1~deb12u1\nDescription: a\n Version: of something\n";
        assert_eq!(field(text, "Version").unwrap(), "6.12.117-1~deb12u1");
        assert_eq!(field(text, "Vers"), None);
        assert_eq!(field("", "Version"), None);
    }
}
