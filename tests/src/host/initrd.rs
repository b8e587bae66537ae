//! The virtual host's initrd: busybox, the modules that reach the 9p root, and a script that moves that root to `/`.
//!
//! It is made anew for each start, for it also carries the [`Job`](super::channel::Job): nothing of a virtual host needs a place
//! in the file system that it shares with its maker.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::channel::Job;
use super::kernel::Kernel;
use super::modules::Modules;

/// The tag of the 9p share that holds this machine's root.
pub const ROOT_TAG: &str = "host";

/// What the kernel needs to reach its root and the ports that tell of its progress.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "virtio_console"];

/// Where Debian's busybox-static installs it.
const BUSYBOX: &str = "/bin/busybox";

/// Writes the initrd for `job` on `kernel` to `output`.
///
/// # Errors
/// When busybox or a module is missing, or the file cannot be written.
pub fn write(output: &Path, kernel: &Kernel, job: &Job) -> Result<()> {
    let modules = Modules::read(&kernel.modules)?.in_load_order(MODULES)?;
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("no {BUSYBOX}; install Debian's busybox-static"))?;
    let myself = std::env::current_exe().context("where is the testbed's own binary?")?;

    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.add(directory, 0o040_755, &[])?;
    }
    archive.add("bin/busybox", 0o100_755, &busybox)?;
    archive.add("bin/sh", 0o120_777, b"busybox")?;
    let mut names = Vec::new();
    for module in &modules {
        let name = PathBuf::from("modules").join(module.file_name().context("a module's name")?);
        let content =
            fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
        archive.add(&name.to_string_lossy(), 0o100_644, &content)?;
        names.push(name);
    }
    archive.add("job", 0o100_600, &serde_json::to_vec(job)?)?;
    archive.add("init", 0o100_755, script(&names, &myself).as_bytes())?;
    fs::write(output, archive.finish()?)
        .with_context(|| format!("cannot write {}", output.display()))
}

/// The initrd's `/init`. The root is moved to `/`: after a mere `chroot`, a process that joins a mount namespace by `setns`, as
/// every exec into a container does, would land in the initrd, which stays the topmost mount.
fn script(modules: &[PathBuf], testbed: &Path) -> String {
    let modules: Vec<_> = modules
        .iter()
        .map(|name| format!("/{}", name.display()))
        .collect();
    format!(
        "#!/bin/sh\n\
         b=/bin/busybox\n\
         die() {{ echo \"testbed: $*\" >/dev/console; $b poweroff -f; }}\n\
         $b mount -t devtmpfs devtmpfs /dev\n\
         for m in {modules}; do $b insmod $m || die \"cannot load $m\"; done\n\
         $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose {ROOT_TAG} /root || die 'cannot mount the root'\n\
         $b mount -t proc proc /root/proc && $b mount -t sysfs sysfs /root/sys || die 'cannot mount /proc and /sys'\n\
         $b mount --move /dev /root/dev || die 'cannot move /dev'\n\
         exec 3</job || die 'no job'\n\
         cd /root && $b mount --move . / && exec $b chroot . {testbed} inside <&3 3<&-\n\
         die 'cannot change to the root'\n",
        modules = modules.join(" "),
        testbed = quote(testbed),
    )
}

/// `path` as one word of a shell script.
fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// A cpio archive in the "newc" form, the one that the kernel unpacks (its `Documentation/driver-api/early-userspace`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        // magic, then: inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name's size, checksum
        let (inode, links) = (self.entries, 1);
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.bytes, "070701")?;
        for field in fields {
            write!(self.bytes, "{field:08X}")?;
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.add("d", 0o040_755, &[]).unwrap();
        archive.add("d/file", 0o100_644, b"odd").unwrap();
        archive.add("d/link", 0o120_777, b"file").unwrap();
        // busybox is what the testbed needs in any case; it has cpio.
        let mut cpio = Command::new(BUSYBOX)
            .args(["cpio", "-id"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bytes = archive.finish().unwrap();
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(fs::read(directory.path().join("d/link")).unwrap(), b"odd");
    }

    #[test]
    fn paths_are_quoted() {
        assert_eq!(quote(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
