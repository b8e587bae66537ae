//! Directories that a VM shares with its host, and the memory that this takes.

mod common;
mod guest;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
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

#[test]
fn a_source_tree_is_compiled_in_the_guest_as_on_its_host() {
    let Some(stage) = stage() else { return };
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path();
    copy(
        &build::source().join("tests/hostile-guest"),
        &work.join("source"),
    );
    // The compiler itself, not what chooses one.
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = String::from_utf8(sysroot.unwrap().stdout).unwrap();
    let compiler = Path::new(sysroot.trim()).join("bin");
    let compile = |target: &str| {
        format!(
            "cd {work}/source && PATH={compiler}:$PATH CARGO_HOME=/tmp/cargo \
             cargo build --release --locked --offline --target-dir {work}/{target} && echo compiled",
            work = work.display(),
            compiler = compiler.display()
        )
    };
    let on_host = Command::new("sh").args(["-c", &compile("host")]).output();
    let on_host = on_host.unwrap();
    assert!(on_host.status.success(), "{on_host:?}");

    let script = with_root_of_host(work, &compile("guest"));
    let vm = Vm::start(
        Kernel::Own,
        &script,
        &[
            "--memory",
            "1G",
            "--fs",
            &format!("{},readonly", share("root", Path::new("/"))),
            "--fs",
            &share("work", work),
        ],
    );
    let begin = Instant::now();
    let said = vm.ends(LONG);
    println!("compiled in the guest in {:.0?}", begin.elapsed());
    assert!(said.contains("compiled\r\n"), "{said}");
    let program = |target: &str| work.join(target).join("release/hostile-guest");
    assert_eq!(sha256(&program("guest")), sha256(&program("host")));
    drop(directory);
    stage.leaves_nothing();
}

#[test]
fn fsx_finds_no_fault() {
    let Some(stage) = stage() else { return };
    /// How often each kind of operation comes.
    const CONFIG: &str = "[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
                          truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 1\npunch_hole = 2\nsendfile = 1\n\
                          posix_fadvise = 1\ncopy_file_range = 2\n";
    const OPERATIONS: u32 = 3000;
    let work = tempfile::tempdir().unwrap();
    fs::write(work.path().join("config"), CONFIG).unwrap();
    let script = format!(
        "cd {} && {} -f config -N {OPERATIONS} -S 7 -P /tmp file && echo no fault || echo fsx failed",
        work.path().display(),
        Cache::open().unwrap().fsx().display()
    );
    for kernel in [Kernel::Vmlinux, Kernel::Own] {
        let vm = Vm::start(
            kernel,
            &with_root_of_host(work.path(), &script),
            &[
                "--fs",
                &format!("{},readonly", share("root", Path::new("/"))),
                "--fs",
                &share("work", work.path()),
            ],
        );
        let said = vm.ends(LONG);
        assert!(said.contains("no fault\r\n"), "{kernel:?}: {said}");
        assert!(fs::metadata(work.path().join("file")).is_ok());
    }
    drop(work);
    stage.leaves_nothing();
}

/// Gives a program the file capability to change files' owners.
fn allow_chown(program: &Path) {
    // struct vfs_ns_cap_data of revision 2: the revision and that all of it is effective; permitted and inheritable, 32 each; the same
    // for the capabilities above.
    let words: [u32; 5] = [0x0200_0001, 1, 0, 0, 0];
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let path = std::ffi::CString::new(program.as_os_str().as_encoded_bytes()).unwrap();
    let name = c"security.capability";
    // SAFETY: the strings end with zeros, and the bytes are as many as is said.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn both_sides_see_what_the_other_does() {
    let Some(stage) = stage() else { return };
    let (work, fixed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| work.path().join(name);
    fs::write(at("from host"), "of the host").unwrap();
    fs::write(fixed.path().join("fixed"), "fixed").unwrap();
    fs::copy("/bin/busybox", at("busybox")).unwrap();
    allow_chown(&at("busybox"));
    let place = work.path().display();
    // What is done as another user shows that extended attributes are there: a file capability is one.
    let script = format!(
        "load virtiofs; mkdir /fixed; mount -t virtiofs fixed /fixed; cat /fixed/fixed; echo; \
         touch /fixed/new 2>/dev/null || rm /fixed/fixed 2>/dev/null || echo x 2>/dev/null >/fixed/fixed || echo nothing is written; \
         mkdir /work; mount -t virtiofs work /work; cd /work; cat from\\ host; echo; \
         mkdir many; for n in $(seq {FILES}); do echo $n >many/$n; done; ls many | wc -l; \
         echo linked >first; ln first second; ln -s first symlink; mkfifo fifo; \
         echo old >old; echo new >new; mv new old; mv many/1 moved; rm many/2; chmod 4711 first; \
         mkdir full; touch full/x; rmdir full 2>/dev/null || echo not empty; \
         cd /; umount /work; mount -t virtiofs work /work; \
         cat /work/first /work/moved >/dev/null; ls /work/many | wc -l; echo the host may look; \
         until [ \"$(cat /work/first)\" = changed ]; do sleep 1; done; \
         until [ ! -e /work/moved ]; do sleep 1; done; ls /work/many | wc -l; \
         mkdir /host; mount -t virtiofs -o ro root /host; mount --bind /work /host{place}; \
         chroot /host chroot --userspec=1000:1000 / {place}/busybox chown 1000 {place}/old; \
         umount /host{place}; umount /work; echo done; poweroff -f"
    );
    let vm = Vm::start(
        Kernel::Vmlinux,
        &script,
        &[
            "--fs",
            &format!("{},readonly", share("fixed", fixed.path())),
            "--fs",
            &share("work", work.path()),
            "--fs",
            &format!("{},readonly", share("root", Path::new("/"))),
        ],
    );
    vm.says("the host may look");
    let said = vm.said();
    for line in [
        "fixed",
        "nothing is written",
        "of the host",
        "1000",
        "not empty",
        "998",
    ] {
        assert!(
            said.contains(&format!("{line}\r\n")),
            "{line} is not in {said}"
        );
    }
    assert_eq!(
        fs::read_to_string(fixed.path().join("fixed")).unwrap(),
        "fixed"
    );
    assert_eq!(fs::read_dir(fixed.path()).unwrap().count(), 1);
    for number in 3..=FILES {
        let text = fs::read_to_string(at(&format!("many/{number}"))).unwrap();
        assert_eq!(text, format!("{number}\n"));
    }
    assert_eq!(fs::read_dir(at("many")).unwrap().count(), FILES - 2);
    assert_eq!(fs::read_to_string(at("moved")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(at("old")).unwrap(), "new\n");
    assert!(!at("new").exists());
    let (first, second) = (
        fs::metadata(at("first")).unwrap(),
        fs::metadata(at("second")).unwrap(),
    );
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    assert_eq!(first.permissions().mode() & 0o7777, 0o4711);
    assert_eq!(fs::read_link(at("symlink")).unwrap(), Path::new("first"));
    assert!(fs::metadata(at("fifo")).unwrap().file_type().is_fifo());

    fs::write(at("first"), "changed").unwrap();
    fs::write(at("many/another"), "").unwrap();
    fs::remove_file(at("moved")).unwrap();
    let said = vm.ends(LIMIT);
    assert!(said.contains("999\r\n"), "{said}");
    assert!(said.contains("done\r\n"), "{said}");
    assert_eq!(fs::metadata(at("old")).unwrap().uid(), 1000, "{said}");
    drop((work, fixed));
    stage.leaves_nothing();
}

/// Starts a VM with a shared directory in the background, whose guest says `tick` all the time.
fn in_background(work: &Path) -> Guest {
    let script = "load virtiofs; mkdir /work; mount -t virtiofs work /work; cat /work/file; echo; \
                  (until [ -e /work/go ]; do sleep 1; done) & \
                  while :; do echo tick; sleep 1; done";
    let guest = Guest::new(Kernel::Own, script);
    fs::write(work.join("file"), "of the host").unwrap();
    let console = format!("file={}", guest.path("console").display());
    let share = share("work", work);
    let mut command = guest.command(&["-d", "--console", &console, "--fs", &share]);
    command
        .env("XDG_RUNTIME_DIR", guest.path("run"))
        .env("ORLOP_VIRTIOFSD", Cache::open().unwrap().virtiofsd());
    let started = Running::start(command, &[]).unwrap().wait(LIMIT).unwrap();
    assert_eq!(started.output(), "story\n", "{started:?}");
    until(&guest, "the guest has its directory", || {
        said(&guest).contains("of the host\r\n")
    });
    guest
}

fn steer(guest: &Guest, command: &str) -> Done {
    let mut line = orlop();
    line.args([command, "story"])
        .env("XDG_RUNTIME_DIR", guest.path("run"));
    Running::start(line, &[]).unwrap().wait(LIMIT).unwrap()
}

#[test]
fn a_vmm_that_is_killed_takes_its_virtiofsd_along() {
    let Some(stage) = stage() else { return };
    let work = tempfile::tempdir().unwrap();
    let guest = in_background(work.path());
    // One process that waits, and one in its namespaces that works.
    assert_eq!(processes("virtiofsd").len(), 2);
    let vmm = processes("orlop");
    let [vmm] = vmm.as_slice() else {
        panic!("{vmm:?}");
    };
    kill(Pid::from_raw(vmm.cast_signed()), Signal::SIGKILL).unwrap();
    until(&guest, "virtiofsd ends", || {
        processes("virtiofsd").is_empty()
    });
    drop((guest, work));
    stage.leaves_nothing();
}

#[test]
fn a_virtiofsd_that_is_killed_is_the_loss_of_one_device() {
    let Some(stage) = stage() else { return };
    let work = tempfile::tempdir().unwrap();
    let guest = in_background(work.path());
    for id in processes("virtiofsd") {
        let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
    }
    let log = guest.path("run/orlop/vm/story.log");
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    until(&guest, "the VMM says so", || {
        logged().contains("(virtiofsd) is gone")
    });
    let ticks = || said(&guest).matches("tick\r\n").count();
    let before = ticks();
    until(&guest, "the guest goes on", || ticks() > before + 2);
    let inspected = steer(&guest, "inspect");
    assert!(inspected.output().contains("running"), "{inspected:?}");
    assert!(
        inspected.output().contains("virtio-fs work"),
        "{inspected:?}"
    );
    let killed = steer(&guest, "kill");
    assert_eq!(killed.status, 0, "{killed:?}; {}", logged());
    until(&guest, "the VMM ends", || processes("orlop").is_empty());
    drop((guest, work));
    stage.leaves_nothing();
}

/// virtiofsd as a user starts it, which is ended with this.
struct Backend(Child);

impl Backend {
    fn start(directory: &Path, socket: &Path) -> Self {
        let mut command = Command::new(Cache::open().unwrap().virtiofsd());
        command.arg("--socket-path").arg(socket);
        command.arg("--shared-dir").arg(directory);
        command.args(["--sandbox", "none", "--log-level", "error"]);
        let backend = Backend(command.spawn().unwrap());
        guest::until("virtiofsd listens", || socket.exists());
        backend
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_directory_comes_and_goes_while_the_guest_runs() {
    let Some(stage) = stage() else { return };
    let work = tempfile::tempdir().unwrap();
    let (shared, socket) = (work.path().join("shared"), work.path().join("socket"));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the host").unwrap();
    let script = "load virtiofs; mkdir /hot; echo ready; \
                  for round in 1 2; do \
                  until mount -t virtiofs hot /hot 2>/dev/null; do sleep 1; done; \
                  cat /hot/file; echo; echo $round >/hot/round; umount /hot; echo round $round; done; \
                  while :; do sleep 60; done";
    let vm = Vm::start(Kernel::Vmlinux, script, &["--memory", "256M,shared"]);
    vm.says("ready");
    assert!(vm.describe().memory_shared);
    let inspected = vm.orlop("inspect", &[]);
    assert!(
        inspected.output().contains("256 MiB, shared"),
        "{inspected:?}"
    );
    for round in 1..=2 {
        let mut backend = Backend::start(&shared, &socket);
        let hot = format!("tag=hot,socket={}", socket.display());
        let added = vm.orlop("add-fs", &[&hot]);
        assert_eq!(added.status, 0, "{added:?}");
        let again = vm.orlop("add-fs", &["tag=hot,socket=/nonexistent"]);
        assert_eq!(again.status, 1, "{again:?}");
        assert!(again.error().contains("the tag hot already"), "{again:?}");
        vm.says(&format!("round {round}"));
        let text = fs::read_to_string(shared.join("round")).unwrap();
        assert_eq!(text, format!("{round}\n"));
        let removed = vm.orlop("remove-device", &[added.output().trim()]);
        assert_eq!(removed.status, 0, "{removed:?}");
        // Its client is gone, and with that its life.
        assert!(backend.0.wait().unwrap().success());
    }
    vm.kill();
    drop(work);
    stage.leaves_nothing();
}

/// The host's huge pages of 2 MiB: none but those that a story makes.
struct Pool;

impl Pool {
    /// With so many pages; `None`, said aloud, where the host has no room for them.
    fn new(pages: u64) -> Option<Self> {
        fs::write(Self::file("nr_hugepages"), pages.to_string()).unwrap();
        let pool = Pool;
        if pool.number("nr_hugepages") < pages {
            stories::skip("this host has no room for huge pages");
            return None;
        }
        Some(pool)
    }

    fn file(name: &str) -> PathBuf {
        Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").join(name)
    }

    fn number(&self, name: &str) -> u64 {
        let text = fs::read_to_string(Self::file(name)).unwrap();
        text.trim().parse().unwrap()
    }

    /// Pages that somebody has, and pages that nobody may have but who has reserved them.
    fn taken(&self) -> (u64, u64) {
        let free = self.number("free_hugepages");
        (
            self.number("nr_hugepages") - free,
            self.number("resv_hugepages"),
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(Self::file("nr_hugepages"), "0");
    }
}

#[test]
fn huge_pages_are_the_vm_s_from_its_start_to_its_end() {
    let Some(stage) = stage() else { return };
    let Some(pool) = Pool::new(64) else { return };
    let work = tempfile::tempdir().unwrap();
    // Not one page is to spare: the guest's second life has those of its first, which virtiofsd had mapped as well.
    let script = "load virtiofs; load virtio_balloon; mkdir /work; mount -t virtiofs work /work; \
                  echo life >>/work/lives; sync; cat /work/lives | wc -l; \
                  [ $(cat /work/lives | wc -l) = 1 ] && reboot -f; \
                  echo waiting; until [ -e /work/go ]; do sleep 1; done; umount /work; poweroff -f";
    let vm = Vm::start(
        Kernel::Vmlinux,
        script,
        &[
            "--memory",
            "128M,hugepages=2M",
            "--fs",
            &share("work", work.path()),
        ],
    );
    vm.says("waiting");
    let (had, reserved) = pool.taken();
    println!("{had} pages are had, and {reserved} reserved");
    assert_eq!(had + reserved, 64);
    assert!(had > 8, "{had}");
    let inspected = vm.orlop("inspect", &[]);
    let line = "128 MiB, in huge pages of 2 MiB";
    assert!(inspected.output().contains(line), "{inspected:?}");
    let balloon = vm.orlop("balloon", &["32M"]);
    assert!(balloon.error().contains("in huge pages"), "{balloon:?}");

    // Nothing is left for another.
    let guest = Guest::new(Kernel::Vmlinux, "poweroff -f");
    let refused = guest.run_with(&["--memory", "64M,hugepages=2M"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    let error = refused.error();
    assert!(
        error.contains("needs 32 huge pages of 2 MiB, and 0 are free"),
        "{error}"
    );
    let advice = "echo 96 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    assert!(error.contains(advice), "{error}");

    File::create(work.path().join("go")).unwrap();
    let said = vm.ends(LIMIT);
    assert!(said.contains("1\r\n") && said.contains("2\r\n"), "{said}");
    assert_eq!(pool.taken(), (0, 0), "all are free again");
    drop((guest, pool, work));
    stage.leaves_nothing();
}
