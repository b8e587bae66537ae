//! A small guest of the stories' own: a kernel, busybox and a script as process 1.

#![allow(dead_code, reason = "each story program uses a part of this")]

pub mod backend;
pub mod held;
pub mod on_terminal;
pub mod peer;
pub mod tap;
pub mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_proto::connect;
use orlop_proto::vmm::v1::vmm_client::VmmClient;
use orlop_testbed::cache::Cache;
use orlop_testbed::children;
use orlop_testbed::containerd::ctr::{Done, Running};
use orlop_testbed::cpio::{Archive, DIRECTORY, FILE, LINK, PROGRAM};
use orlop_testbed::host::modules::Modules;
use orlop_testbed::host::{HostKernel, kernel};
use orlop_testbed::setup::build;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// How long anything about one guest may take.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How long what comes of a program's end may take.
const MOMENT: Duration = Duration::from_secs(15);

/// The modules that the script's `load` can load.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "virtio_console",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "button",
    "evdev",
    "pvpanic-mmio",
];

/// The kernel command line: that of the design, so that what users run is what is tested.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd \
     swiotlb=noforce cryptomgr.notests tsc=reliable random.trust_cpu=1 percpu_alloc=page";

/// The kernel.
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    /// Debian's cloud kernel: `vmlinuz` as packaged.
    BzImage,
    /// The ELF image in it.
    Vmlinux,
    /// That image, with its note of a PVH entry point gone.
    WithoutPvh,
    /// Debian's kernel for machines of all kinds, as packaged.
    Full,
    /// A newer cloud kernel of Debian's, as packaged.
    Newer,
    /// The ELF image of a kernel of our own, which has its drivers built in.
    Own,
    /// That kernel as a `bzImage`.
    OwnBzImage,
}

impl Kernel {
    /// Where its package was unpacked, if it comes from one. The initramfs of others has the cloud kernel's modules, and no use for them.
    fn package(self, cache: &Cache) -> kernel::Kernel {
        let root = match self {
            Kernel::Full => cache.host_kernel(HostKernel::Stable),
            Kernel::Newer => cache.newer_guest_kernel(),
            _ => cache.guest_kernel(),
        };
        kernel::Kernel::find(&root).unwrap()
    }
}

/// A guest that runs a script.
pub struct Guest {
    directory: TempDir,
    kernel: PathBuf,
}

impl Guest {
    /// Prepares a guest whose process 1 runs `script`.
    pub fn new(kernel: Kernel, script: &str) -> Self {
        Self::with(kernel, script, &[])
    }

    /// The same, with these programs of the machine's in `/bin`, and the libraries that they need.
    pub fn with(kernel: Kernel, script: &str, programs: &[PathBuf]) -> Self {
        Self::with_drivers(kernel, script, programs, &[])
    }

    /// The same, whose `load` can load these drivers as well, of devices of the host's.
    pub fn with_drivers(
        kernel: Kernel,
        script: &str,
        programs: &[PathBuf],
        drivers: &[&str],
    ) -> Self {
        let cache = Cache::open().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let package = kernel.package(&cache);
        let initramfs = initramfs(&package, script, programs, drivers);
        fs::write(directory.path().join("initramfs"), initramfs).unwrap();
        let kernel = match kernel {
            Kernel::BzImage => cache.guest_vmlinuz(),
            Kernel::Vmlinux => cache.guest_vmlinux(),
            Kernel::Full | Kernel::Newer => package.image,
            Kernel::Own => cache.own_vmlinux(),
            Kernel::OwnBzImage => cache.own_bzimage(),
            Kernel::WithoutPvh => {
                let path = directory.path().join("vmlinux");
                fs::write(
                    &path,
                    without_notes(fs::read(cache.guest_vmlinux()).unwrap()),
                )
                .unwrap();
                path
            }
        };
        Self { directory, kernel }
    }

    /// Its kernel's file.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// A path in the guest's directory on this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The command that runs the VMM with further arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = orlop();
        command.arg("run");
        if !arguments.contains(&"--name") {
            command.args(["--name", "story"]);
        }
        if !arguments.contains(&"--console") {
            command.args(["--console", "stdio"]);
        }
        command.arg("--kernel").arg(&self.kernel);
        command.arg("--initramfs").arg(self.path("initramfs"));
        if !arguments.contains(&"--memory") {
            command.args(["--memory", "256M"]);
        }
        if !arguments.contains(&"--cmdline") {
            command.args(["--cmdline", COMMAND_LINE]);
        }
        command.args(arguments);
        command
    }

    /// Starts the VMM with further arguments.
    pub fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments), &[]).unwrap()
    }

    /// Runs the VMM to its end with no more than these arguments, and the guest's kernel and initramfs where they name none.
    pub fn run_with(&self, arguments: &[&str]) -> Done {
        self.run_by(orlop(), arguments)
    }

    /// The same, by a command that the VMM's own arguments are appended to.
    pub fn run_by(&self, mut command: Command, arguments: &[&str]) -> Done {
        command.arg("run").args(arguments);
        let names = |flag: &str| arguments.contains(&flag);
        if !names("--kernel") {
            command.arg("--kernel").arg(&self.kernel);
        }
        if !names("--initramfs") {
            command.arg("--initramfs").arg(self.path("initramfs"));
        }
        if !names("--console") {
            command.args(["--console", "null"]);
        }
        Running::start(command, &[])
            .and_then(|running| running.wait(LIMIT))
            .unwrap()
    }

    /// Runs the VMM to its end.
    pub fn run(&self, arguments: &[&str]) -> Done {
        self.start(arguments).wait(LIMIT).unwrap()
    }
}

/// The VMM's program.
pub fn orlop() -> Command {
    Command::new(build::programs_directory().join("orlop"))
}

/// An ELF file whose program headers of type PT_NOTE are PT_NULL.
fn without_notes(mut elf: Vec<u8>) -> Vec<u8> {
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&elf[at..at + len]);
        usize::try_from(u64::from_le_bytes(bytes)).unwrap()
    };
    // e_phoff, e_phentsize, e_phnum
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    let notes: Vec<_> = (0..count)
        .map(|index| table + index * size)
        .filter(|at| number(*at, 4) == 4)
        .collect();
    assert!(!notes.is_empty(), "there is no note to take away");
    for at in notes {
        elf[at..at + 4].fill(0);
    }
    elf
}

fn initramfs(
    kernel: &kernel::Kernel,
    script: &str,
    programs: &[PathBuf],
    drivers: &[&str],
) -> Vec<u8> {
    let modules = kernel.modules.as_deref().unwrap();
    let modules = Modules::read(modules).unwrap();
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "sys"] {
        archive.add(directory, DIRECTORY, &[]).unwrap();
    }
    let busybox = fs::read("/bin/busybox").unwrap();
    archive.add("bin/busybox", PROGRAM, &busybox).unwrap();
    archive.add("bin/sh", LINK, b"busybox").unwrap();
    let mut init =
        String::from("#!/bin/sh\n/bin/busybox --install -s /bin\nload() { insmod_$1; }\n");
    let mut known = Vec::new();
    for name in MODULES.iter().chain(drivers) {
        init.push_str(&format!("insmod_{}() {{ :", name.replace('-', "_")));
        for file in modules.in_load_order(&[name]).unwrap() {
            let short = file.file_name().unwrap().to_str().unwrap().to_owned();
            init.push_str(&format!("; insmod /modules/{short} 2>/dev/null"));
            if !known.contains(&short) {
                let content = fs::read(&file).unwrap();
                let path = format!("modules/{short}");
                archive.add(&path, FILE, &content).unwrap();
                known.push(short);
            }
        }
        init.push_str("; }\n");
    }
    init.push_str(
        "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n",
    );
    init.push_str("load virtio_pci\n");
    init.push_str(script);
    init.push('\n');
    archive.add("init", PROGRAM, init.as_bytes()).unwrap();
    add_programs(&mut archive, programs);
    archive.finish().unwrap()
}

/// Adds programs, and their libraries where the dynamic loader looks for them.
fn add_programs(archive: &mut Archive, programs: &[PathBuf]) {
    let mut known = Vec::new();
    let mut directories = Vec::new();
    for program in programs {
        let name = program.file_name().unwrap().to_str().unwrap();
        let content = fs::read(program).unwrap();
        archive
            .add(&format!("bin/{name}"), PROGRAM, &content)
            .unwrap();
        let listed = Command::new("ldd").arg(program).output().unwrap();
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`; the loader stands alone, and a static program has none of them.
        for library in String::from_utf8_lossy(&listed.stdout)
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let path = Path::new(library);
            for parent in path.ancestors().skip(1).collect::<Vec<_>>().iter().rev() {
                let parent = parent.to_str().unwrap().trim_start_matches('/').to_owned();
                if !parent.is_empty() && !directories.contains(&parent) {
                    archive.add(&parent, DIRECTORY, &[]).unwrap();
                    directories.push(parent);
                }
            }
            if !known.contains(&library.to_owned()) {
                let content = fs::read(path).unwrap();
                let name = library.trim_start_matches('/');
                archive.add(name, PROGRAM, &content).unwrap();
                known.push(library.to_owned());
            }
        }
    }
}

/// Makes one call to the VMM at `socket`.
pub fn control<T>(
    socket: &Path,
    call: impl AsyncFnOnce(VmmClient<Channel>) -> Result<Response<T>, Status>,
) -> Result<T, Status> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = connect::unix(socket)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        call(VmmClient::new(channel))
            .await
            .map(Response::into_inner)
    })
}

/// Waits until something holds: not long if a program ends meanwhile that the story has started, for that is then what should make it hold, or what
/// should not have happened.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    let ended = children::ended();
    let mut soon = None;
    while !holds() {
        let now = Instant::now();
        if soon.is_none() && children::ended() > ended {
            soon = Some(now + MOMENT);
        }
        let late = soon.is_some_and(|soon| now > soon);
        assert!(!late, "{what}: a program has ended, and it is not so");
        assert!(now < end, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
