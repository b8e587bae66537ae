//! Directories that a VM shares with its host, and the memory that this takes.

#[path = "../common/mod.rs"]
mod common;
mod content;
mod endings;
#[path = "../guest/mod.rs"]
mod guest;
mod huge_pages;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{processes, stage};
use guest::{Guest, Kernel, LIMIT, control, orlop};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::vmm::v1::{DescribeRequest, DescribeResponse, KillRequest};
use orlop_testbed::cache::Cache;
use orlop_testbed::containerd::ctr::{Done, Running};
use orlop_testbed::setup::build;
use orlop_testbed::stories;
use sha2::{Digest, Sha256};

/// How long a guest may take to compile on an emulated machine that is busy with other things.
const LONG: Duration = Duration::from_secs(600);

/// Files in a directory.
const FILES: usize = 1000;

/// A guest whose console is a file.
struct Vm {
    guest: Guest,
    running: Running,
}

impl Vm {
    fn start(kernel: Kernel, script: &str, arguments: &[&str]) -> Self {
        let guest = Guest::new(kernel, script);
        let console = format!("file={}", guest.path("console").display());
        let socket = guest.path("control");
        let mut line = vec!["--console", &console, "--api-socket"];
        line.push(socket.to_str().unwrap());
        line.extend(arguments);
        let mut command = guest.command(&line);
        command.env("ORLOP_VIRTIOFSD", Cache::open().unwrap().virtiofsd());
        let running = Running::start(command, &[]).unwrap();
        Vm { guest, running }
    }

    fn said(&self) -> String {
        said(&self.guest)
    }

    fn says(&self, line: &str) {
        until(&self.guest, line, || {
            self.said().contains(&format!("{line}\r\n"))
        });
    }

    fn describe(&self) -> DescribeResponse {
        let socket = self.guest.path("control");
        control(&socket, async |mut vm| {
            vm.describe(DescribeRequest {}).await
        })
        .unwrap()
    }

    /// Runs `orlop` with a command, this VM, and further words.
    fn orlop(&self, command: &str, words: &[&str]) -> Done {
        let mut line = orlop();
        line.arg(command)
            .arg(self.guest.path("control"))
            .args(words);
        Running::start(line, &[]).unwrap().wait(LIMIT).unwrap()
    }

    /// Waits for the guest to power itself off; returns what it has said.
    fn ends(self, limit: Duration) -> String {
        let ended = self.running.wait(limit);
        let said = said(&self.guest);
        let ended = ended.unwrap_or_else(|error| panic!("{error:#}; the guest said {said}"));
        assert_eq!(ended.status, 0, "{ended:?}; the guest said {said}");
        said
    }

    fn kill(self) {
        // The answer may be lost with the VM.
        let _ = control(&self.guest.path("control"), async |mut vm| {
            vm.kill(KillRequest {}).await
        });
        assert_eq!(self.running.wait(LIMIT).unwrap().status, 137);
    }
}

fn said(guest: &Guest) -> String {
    let said = fs::read(guest.path("console")).unwrap_or_default();
    String::from_utf8_lossy(&said).into_owned()
}

/// Waits until something holds; the guest's console tells why it does not.
fn until(guest: &Guest, what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}: {}", said(guest));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn share(tag: &str, path: &Path) -> String {
    format!("tag={tag},path={}", path.display())
}

/// What a guest does to have its host's root, read-only, for its own, with `place` of it writable. Both are where they are on the host,
/// so that a program cannot tell where it is by a path. What it is to do there follows, in single quotes.
fn with_root_of_host(place: &Path, script: &str) -> String {
    let place = place.display();
    format!(
        "load virtiofs; mkdir /host; mount -t virtiofs -o ro root /host && mount -t virtiofs work /host{place} || echo no share; \
         mount -t proc proc /host/proc; mount -t tmpfs tmp /host/tmp; mount --bind /dev /host/dev; \
         HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot /host /bin/sh -c '{script}'; umount /host{place}; poweroff -f"
    )
}

fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A copy of a tree of directories and files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}
