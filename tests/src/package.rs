//! `cargo testbed package`: a release as users get it, an archive that a node's `install.sh` lies in.
//!
//! The same files make the same archive, whoever packs them and when: sorted, root's, of the year 1970.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::cache::Cache;
use crate::progress::step;
use crate::setup::{build, debian, guest, own_kernel};

/// The release that this tree makes.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the archive's files must be as; `install.sh` looks.
const SUMS: &str = "SHA256SUMS";

const FILE: u32 = 0o644;
const PROGRAM: u32 = 0o755;

/// A file of a release: its path there, its mode, and where it is taken from.
#[derive(Debug, Clone)]
pub struct Member {
    name: &'static str,
    mode: u32,
    source: PathBuf,
}

/// Builds what a release is made of and packs it into `output`, by default a file of the release's name in this directory.
///
/// # Errors
/// When something cannot be built, or the archive cannot be written.
pub fn run(output: Option<PathBuf>) -> Result<ExitCode> {
    let cache = Cache::open()?;
    debian::install(debian::VIRTIOFSD_BUILD)?;
    debian::install(debian::GUEST_IMAGE)?;
    build::programs()?;
    build::virtiofsd(&cache)?;
    guest::kernel(&cache)?;
    guest::initramfs(&cache)?;
    guest::image(&cache)?;
    let guest = Guest {
        kernel: own_kernel::build()?,
        image: cache.own_image(),
        initramfs: cache.own_initramfs(),
        modular_initramfs: cache.guest_initramfs(),
    };
    let members = members(&build::programs_directory(), &cache.virtiofsd(), &guest);
    let output = output.unwrap_or_else(|| format!("{}.tar.gz", name(VERSION)).into());
    pack(VERSION, &members, &output)?;
    step(format!(
        "{} is a release of Orlop {VERSION}",
        output.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The directory that a release's archive unpacks to.
fn name(version: &str) -> String {
    format!("orlop-{version}-x86_64")
}

/// What a release has for guests.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel of our own.
    pub kernel: PathBuf,
    /// The image that goes with it.
    pub image: PathBuf,
    /// The same agent in an initramfs, for kernels that users bring along.
    pub initramfs: PathBuf,
    /// One for those who prefer Debian's kernel, with its modules: whose guests have devices that our own has no drivers for.
    pub modular_initramfs: PathBuf,
}

/// All files of a release but those that tell of the others, sorted.
pub fn members(programs: &Path, virtiofsd: &Path, guest: &Guest) -> Vec<Member> {
    let source = build::source();
    let member = |name, mode, source| Member { name, mode, source };
    let shim = "bin/containerd-shim-orlop-v2";
    vec![
        member("LICENSE", FILE, source.join("LICENSE")),
        member(shim, PROGRAM, programs.join("containerd-shim-orlop-v2")),
        member("bin/orlop", PROGRAM, programs.join("orlop")),
        member("bin/orlop-node", PROGRAM, programs.join("orlop-node")),
        member("bin/virtiofsd", PROGRAM, virtiofsd.to_owned()),
        member("install.sh", PROGRAM, source.join("deploy/install.sh")),
        member("share/agent.erofs", FILE, guest.image.clone()),
        member("share/config.toml", FILE, source.join("deploy/config.toml")),
        member(
            "share/initramfs-debian.cpio",
            FILE,
            guest.modular_initramfs.clone(),
        ),
        member("share/initramfs.cpio", FILE, guest.initramfs.clone()),
        member("share/vmlinux", FILE, guest.kernel.clone()),
    ]
}

/// Packs `members` as release `version` into the file `output`, which is there whole or not at all.
///
/// # Errors
/// When a member cannot be read or the archive cannot be written.
pub fn pack(version: &str, members: &[Member], output: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", output.display());
    let directory = output.parent().filter(|path| !path.as_os_str().is_empty());
    let partial = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))
        .with_context(cannot)?;
    let encoder = GzEncoder::new(partial, Compression::best());
    let mut archive = tar::Builder::new(encoder);
    let root = name(version);
    for directory in ["", "bin/", "share/"] {
        let mut header = header(PROGRAM, 0);
        header.set_entry_type(EntryType::Directory);
        let path = format!("{root}/{directory}");
        archive
            .append_data(&mut header, path, io::empty())
            .with_context(cannot)?;
    }
    let mut add = |name: &str, mode, bytes: &[u8]| {
        let size = u64::try_from(bytes.len())?;
        archive
            .append_data(&mut header(mode, size), format!("{root}/{name}"), bytes)
            .with_context(cannot)
    };
    let mut sums = Sums::default();
    let version = format!("{version}\n");
    sums.add("VERSION", version.as_bytes());
    add("VERSION", FILE, version.as_bytes())?;
    for member in members {
        let bytes = fs::read(&member.source)
            .with_context(|| format!("cannot read {}", member.source.display()))?;
        sums.add(member.name, &bytes);
        add(member.name, member.mode, &bytes)?;
    }
    add(SUMS, FILE, sums.0.as_bytes())?;
    let partial = archive.into_inner()?.finish().with_context(cannot)?;
    publish(partial, output).with_context(cannot)
}

fn publish(mut partial: tempfile::NamedTempFile, output: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    partial.flush()?;
    let file: &File = partial.as_file();
    file.set_permissions(fs::Permissions::from_mode(FILE))?;
    file.sync_all()?;
    partial.persist(output)?;
    Ok(())
}

/// A header that says nothing of who packs, and when.
fn header(mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Lines as `sha256sum -c` reads them.
#[derive(Default)]
struct Sums(String);

impl Sums {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        for byte in Sha256::digest(bytes) {
            self.0 += &format!("{byte:02x}");
        }
        self.0 += &format!("  {name}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_same_files_make_the_same_archive_which_is_what_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for program in [
            "orlop",
            "orlop-node",
            "containerd-shim-orlop-v2",
            "virtiofsd",
        ] {
            fs::write(at(program), program).unwrap();
        }
        fs::write(at("kernel"), vec![7; 1 << 20]).unwrap();
        fs::write(at("initramfs"), "").unwrap();
        let guest = Guest {
            kernel: at("kernel"),
            image: at("initramfs"),
            initramfs: at("initramfs"),
            modular_initramfs: at("initramfs"),
        };
        let members = members(directory.path(), &at("virtiofsd"), &guest);
        pack("1.2.3", &members, &at("first.tar.gz")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        fs::write(at("kernel"), vec![7; 1 << 20]).unwrap();
        pack("1.2.3", &members, &at("second.tar.gz")).unwrap();
        let first = fs::read(at("first.tar.gz")).unwrap();
        assert!(first == fs::read(at("second.tar.gz")).unwrap());

        let script = "tar xzf first.tar.gz && cd orlop-1.2.3-x86_64 && sha256sum -c SHA256SUMS && ./install.sh --help";
        let mut command = Command::new("sh");
        let done = command.args(["-c", script]).current_dir(directory.path());
        let done = done.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}");
        assert_eq!(said.matches(": OK\n").count(), members.len() + 1, "{said}");
        assert!(said.contains("Usage: install.sh"), "{said}");
    }

    #[test]
    fn an_archive_that_cannot_be_made_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let absent = Path::new("/nonexistent");
        let guest = Guest {
            kernel: absent.into(),
            image: absent.into(),
            initramfs: absent.into(),
            modular_initramfs: absent.into(),
        };
        let members = members(absent, absent, &guest);
        let error = pack("1", &members, &directory.path().join("a.tar.gz")).unwrap_err();
        assert!(
            format!("{error:#}").contains("cannot read /nonexistent"),
            "{error:#}"
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
