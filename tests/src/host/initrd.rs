//! The virtual host's initrd: busybox, the modules that reach the 9p root, and a script that moves that root to `/`.
//!
//! It is made anew for each start, for it also carries the [`Job`](super::channel::Job): nothing of a virtual host needs a place
//! in the file system that it shares with its maker.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::channel::Job;
use super::kernel::Kernel;
use super::modules;
use crate::cpio::{Archive, DIRECTORY, FILE, LINK, PROGRAM};

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
    let modules = modules::to_load(kernel.modules.as_deref(), MODULES)?;
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("no {BUSYBOX}; install Debian's busybox-static"))?;
    let myself = crate::own::program()?;

    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.add(directory, DIRECTORY, &[])?;
    }
    archive.add("bin/busybox", PROGRAM, &busybox)?;
    archive.add("bin/sh", LINK, b"busybox")?;
    let mut names = Vec::new();
    for module in &modules {
        let name = PathBuf::from("modules").join(module.file_name().context("a module's name")?);
        let content =
            fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
        archive.add(&name.to_string_lossy(), FILE, &content)?;
        names.push(name);
    }
    archive.add("job", FILE, &serde_json::to_vec(job)?)?;
    archive.add("init", PROGRAM, script(&names, &myself).as_bytes())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted() {
        assert_eq!(quote(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
