//! Arguments of `orlop run` that cannot be: each has a message of its own, a status that is not 0, and leaves nothing behind.

mod common;
mod guest;

use std::fs;
use std::path::Path;

use common::{Stage, stage};
use guest::{Guest, Kernel};
use orlop_testbed::cache::Cache;
use orlop_testbed::containerd::ctr::Done;

/// The status of a VM that could not be run, and that of arguments which mean nothing.
const FAILED: u8 = 1;
const USAGE: u8 = 2;

struct Bench {
    stage: Stage,
    guest: Guest,
}

impl Bench {
    fn new() -> Option<Self> {
        let stage = stage()?;
        let guest = Guest::new(Kernel::Vmlinux, "poweroff -f");
        Some(Self { stage, guest })
    }

    /// `orlop run` with these arguments, and with another kernel or initramfs if they name one, ends with `status` and says one line
    /// with all of `words`.
    fn refuses(&self, arguments: &[&str], status: u8, words: &[&str]) {
        let files = |directory: &Path| {
            let mut names: Vec<_> = fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let directory = self.guest.path("");
        let before = files(&directory);
        let done: Done = self.guest.run_with(arguments);
        let error = done.error();
        assert_eq!(done.status, status, "{arguments:?}: {error}");
        if status == FAILED {
            assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        }
        for word in words {
            assert!(
                error.contains(word),
                "{arguments:?}: no {word:?} in: {error}"
            );
        }
        assert_eq!(files(&directory), before, "{arguments:?} left something");
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.guest.path(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn ends(self) {
        drop(self.guest);
        self.stage.leaves_nothing();
    }
}

#[test]
fn kernels_that_are_none() {
    let Some(bench) = Bench::new() else { return };
    let cache = Cache::open().unwrap();
    let vmlinux = fs::read(cache.guest_vmlinux()).unwrap();
    let vmlinuz = fs::read(cache.guest_vmlinuz()).unwrap();
    let mut arm = vmlinux.clone();
    arm[18] = 183;
    // e_entry stays; the first PT_LOAD (p_type 1) goes to the far end of the address space, p_paddr at 24.
    let mut far = vmlinux.clone();
    let table = usize::try_from(u64::from_le_bytes(far[0x20..0x28].try_into().unwrap())).unwrap();
    assert_eq!(far[table], 1);
    far[table + 24..table + 32].copy_from_slice(&(1_u64 << 50).to_le_bytes());
    let damaged = "is damaged or does not fit";
    for (name, content, words) in [
        (
            "empty",
            &b""[..],
            ["neither an ELF vmlinux nor an x86 bzImage", "empty"],
        ),
        (
            "half-elf",
            &vmlinux[..vmlinux.len() / 2],
            [damaged, "half-elf"],
        ),
        ("head-of-elf", &vmlinux[..100], [damaged, "head-of-elf"]),
        ("half-bzimage", &vmlinuz[..0x300], [damaged, "half-bzimage"]),
        ("arm", &arm, ["another architecture (arm64)", "arm"]),
        ("far", &far, [damaged, "far"]),
    ] {
        let path = bench.file(name, content);
        bench.refuses(&["--kernel", &path], FAILED, &words);
    }
    bench.refuses(
        &["--kernel", "/nowhere"],
        FAILED,
        &["cannot read kernel /nowhere", "No such file"],
    );
    bench.refuses(
        &["--kernel", "/etc"],
        FAILED,
        &["cannot read kernel /etc", "directory"],
    );
    bench.refuses(
        &["--kernel", "fd=999"],
        FAILED,
        &["cannot read kernel fd=999", "Bad file descriptor"],
    );
    bench.ends();
}

#[test]
fn an_initramfs_larger_than_ram() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("initramfs-of-1G", b"");
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    bench.refuses(
        &["--initramfs", &path],
        FAILED,
        &["initramfs-of-1G", "does not fit", "--memory"],
    );
    bench.refuses(
        &["--initramfs", "/nowhere"],
        FAILED,
        &["cannot read initramfs /nowhere"],
    );
    bench.ends();
}

#[test]
fn a_file_that_cannot_be_persistent_memory() {
    let Some(bench) = Bench::new() else { return };
    let (empty, large) = (bench.file("empty", b""), bench.file("large", b""));
    let file = fs::File::options().write(true).open(&large).unwrap();
    file.set_len(1 << 40).unwrap();
    for (path, words) in [
        (&*empty, ["empty is no regular file", "--pmem"]),
        (&*large, ["at most 268435456", "--disk"]),
        ("/dev/null", ["/dev/null is no regular file", "--pmem"]),
        ("/nowhere", ["cannot map /nowhere", "No such file"]),
        ("/tmp", ["cannot map /tmp", "directory"]),
    ] {
        bench.refuses(&["--pmem", path], FAILED, &words);
    }
    bench.ends();
}

#[test]
fn sizes_that_no_vm_has() {
    let Some(bench) = Bench::new() else { return };
    for cpus in ["0", "10000", "-1", "two"] {
        bench.refuses(&[&format!("--cpus={cpus}")], USAGE, &["--cpus", "1 to 255"]);
    }
    for memory in ["0", "1M", "2T", "much"] {
        bench.refuses(&[&format!("--memory={memory}")], USAGE, &["--memory"]);
    }
    // More than the machine has, and less than a VM may have.
    bench.refuses(
        &["--memory=1T"],
        FAILED,
        &["1048576 MiB", "this machine has", "--memory"],
    );
    bench.ends();
}

#[test]
fn disks_that_are_none() {
    let Some(bench) = Bench::new() else { return };
    let odd = bench.file("odd", &[0; 1000]);
    let small = bench.file("small", &[0; 100]);
    bench.refuses(
        &["--disk", "path=/nowhere"],
        FAILED,
        &["cannot open the disk /nowhere"],
    );
    bench.refuses(&["--disk", "path=/dev"], FAILED, &["/dev"]);
    bench.refuses(&["--disk", &format!("path={odd}")], FAILED, &[&odd, "512"]);
    bench.refuses(
        &["--disk", &format!("path={small}")],
        FAILED,
        &[&small, "512"],
    );
    bench.refuses(&["--disk", "path=/a,colour=red"], USAGE, &["colour"]);
    let disk = bench.file("disk", &[0; 4096]);
    let twice = format!("path={disk}");
    bench.refuses(
        &["--disk", &twice, "--disk", &twice],
        FAILED,
        &[&disk, "in use"],
    );
    bench.ends();
}

#[test]
fn flags_that_contradict_or_lead_nowhere() {
    let Some(bench) = Bench::new() else { return };
    bench.refuses(
        &["--cpus=1", "--cpus=2"],
        USAGE,
        &["--cpus", "multiple times"],
    );
    bench.refuses(&["--colour=red"], USAGE, &["--colour"]);
    let long = format!("/run/{}", "x".repeat(200));
    bench.refuses(
        &["--api-socket", &long],
        FAILED,
        &["cannot listen on the control socket", &long],
    );
    bench.refuses(&["--api-socket", "/nowhere/s"], FAILED, &["/nowhere/s"]);
    let taken = bench.file("taken", b"a file that is no socket");
    bench.refuses(&["--api-socket", &taken], FAILED, &[&taken]);
    bench.refuses(
        &["--console", "file=/nowhere/log"],
        FAILED,
        &["/nowhere/log"],
    );
    bench.ends();
}
