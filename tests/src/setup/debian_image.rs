//! A container image of Debian's own: its essential packages, unpacked, as an OCI layout that Debian's skopeo writes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::debian;
use crate::cache::Cache;
use crate::image::{self, Image};
use crate::progress::step;
use crate::stories::{size, skip};

/// What the image is called in its layout.
pub const TAG: &str = "it";

/// What makes a Debian that one can work in, and the libraries of it.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "gcc-12-base",
    "grep",
    "gzip",
    "hostname",
    "libacl1",
    "libattr1",
    "libaudit-common",
    "libaudit1",
    "libblkid1",
    "libbz2-1.0",
    "libc-bin",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libdb5.3",
    "libgcc-s1",
    "libgcrypt20",
    "libgmp10",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libmd0",
    "libmount1",
    "libpam-modules",
    "libpam0g",
    "libpcre2-8-0",
    "libselinux1",
    "libsmartcols1",
    "libsystemd0",
    "libtinfo6",
    "libudev1",
    "libuuid1",
    "libzstd1",
    "login",
    "passwd",
    "perl-base",
    "sed",
    "tar",
    "util-linux",
    "zlib1g",
];

/// The layout, for a story at full size. Another one is told that it is skipped.
#[must_use]
pub fn at_full_size() -> Option<PathBuf> {
    if size(0, 1) == 1
        && let Ok(cache) = Cache::open()
        && cache.debian_image().is_dir()
    {
        return Some(cache.debian_image());
    }
    skip("an image of Debian's packages takes long: `cargo testbed test --full` makes it");
    None
}

/// Makes the layout, if it is not there.
///
/// # Errors
/// When a package cannot be fetched, or skopeo fails.
pub fn build(cache: &Cache) -> Result<()> {
    let layout = cache.debian_image();
    if layout.is_dir() {
        return Ok(());
    }
    debian::install(debian::REFERENCES)?;
    debian::place(&layout, |work| {
        let root = work.join("root");
        unpack(work, &root)?;
        step("packing an image of Debian's packages");
        let layer = work.join("layer.tar");
        debian::run(
            Command::new("tar")
                .args(["--numeric-owner", "--xattrs", "-C"])
                .arg(&root)
                .arg("-cf")
                .args([layer.as_os_str(), ".".as_ref()]),
        )?;
        let name = format!("localhost/orlop-debian:{TAG}");
        let archive = image::pack(&[Image::new(&name, fs::read(&layer)?, &["bash"])])?;
        let saved = work.join("saved.tar");
        fs::write(&saved, archive)?;
        let layout = work.join("layout");
        debian::run(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--insecure-policy"])
                .arg(format!("docker-archive:{}", saved.display()))
                .arg(format!("oci:{}:{TAG}", layout.display())),
        )?;
        Ok(layout)
    })
}

fn unpack(work: &Path, root: &Path) -> Result<()> {
    let fetched = work.join("packages");
    fs::create_dir(&fetched)?;
    fs::create_dir(root)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for archive in debian::fetch_all(PACKAGES, &fetched)? {
        debian::unpack(&archive, root)?;
    }
    // What the package does when it is installed.
    for list in ["passwd", "group"] {
        let master = root.join(format!("usr/share/base-passwd/{list}.master"));
        fs::copy(&master, root.join("etc").join(list))
            .with_context(|| format!("no {}", master.display()))?;
    }
    Ok(())
}
