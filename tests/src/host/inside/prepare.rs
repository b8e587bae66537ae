//! Makes a host of a kernel with a root: file systems, cgroups, modules, loopback.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Pid;

use crate::host::channel::Job;
use crate::host::modules;

/// Where temporary files go.
pub(super) const TEMPORARY: &str = "/run/tmp";

/// Called by the kernel when it wants a module by itself.
const MODPROBE: &str = "/run/orlop-testbed/modprobe";

/// What a host of Orlop needs from its kernel, and what tests of its parts use. Without `vfio_iommu_type1`, VFIO says that there
/// are no IOMMU models; without the crc32c modules, nf_tables cannot be loaded.
const MODULES: &[&str] = &[
    "kvm_amd",
    "vhost_net",
    "vhost_vsock",
    "vfio_iommu_type1",
    "vfio-pci",
    "tun",
    "overlay",
    "crc32c_generic",
    "crc32c_intel",
    "bridge",
    "veth",
    "loop",
];

/// A mount to make: file system, place, options.
type Mount = (&'static str, &'static str, Option<&'static str>);

/// What overlayfs or a socket may be in is tmpfs; `/tmp` stays the machine's own, where sources and builds may be.
const MOUNTS: &[Mount] = &[
    ("tmpfs", "/run", Some("mode=755")),
    ("devpts", "/dev/pts", Some("gid=5,mode=620,ptmxmode=666")),
    ("tmpfs", "/dev/shm", Some("mode=1777")),
    ("mqueue", "/dev/mqueue", None),
    ("cgroup2", "/sys/fs/cgroup", Some("nsdelegate")),
    ("securityfs", "/sys/kernel/security", None),
    ("debugfs", "/sys/kernel/debug", None),
    ("tracefs", "/sys/kernel/tracing", None),
];

/// Prepares the host.
pub(super) fn host(job: &Job) -> Result<()> {
    leave_the_first_processor().context("cannot leave the first processor alone")?;
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place).ok();
        mount(Some(*kind), *place, Some(*kind), MsFlags::empty(), *options)
            .with_context(|| format!("cannot mount {kind} on {place}"))?;
    }
    // As an init system leaves it: what is mounted below shows in every mount namespace that does not opt out.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .context("cannot share the mounts below /")?;
    for directory in ["/run/lock", "/run/netns", "/run/orlop-testbed", TEMPORARY] {
        fs::create_dir_all(directory)?;
    }
    fs::set_permissions(TEMPORARY, fs::Permissions::from_mode(0o1777))?;
    for (name, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        let link = Path::new("/dev").join(name);
        if !link.exists() {
            symlink(format!("/proc/self/fd{target}"), link)?;
        }
    }
    enable_controllers()?;
    load_modules(job)?;
    loopback_up().context("cannot bring loopback up")?;
    nix::unistd::sethostname("orlop-host")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    setrlimit(Resource::RLIMIT_NOFILE, 65_536, 1_048_576)?;
    Ok(())
}

/// Keeps this process, and with it all that it will ever start, off the processor on which no VM may run, for the emulator's sake. Where it
/// is the only one, nothing runs at the same time as it.
fn leave_the_first_processor() -> nix::Result<()> {
    const FIRST: usize = 0;
    let mut processors = sched_getaffinity(Pid::from_raw(0))?;
    processors.unset(FIRST)?;
    let is_left = |number| processors.is_set(number).unwrap_or(false);
    if (0..CpuSet::count()).any(is_left) {
        sched_setaffinity(Pid::from_raw(0), &processors)?;
    }
    Ok(())
}

/// The options with which modprobe finds this kernel's modules.
pub(super) fn modprobe_options(job: &Job) -> OsString {
    // lib/modules/VERSION
    let root = job.modules.as_deref().and_then(|it| it.ancestors().nth(3));
    let mut options = OsString::from("-d ");
    options.push(root.unwrap_or(Path::new("/")));
    options
}

fn enable_controllers() -> Result<()> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write(
            "/sys/fs/cgroup/cgroup.subtree_control",
            format!("+{controller}"),
        )
        .with_context(|| format!("cannot enable the cgroup controller {controller}"))?;
    }
    Ok(())
}

fn load_modules(job: &Job) -> Result<()> {
    let options = modprobe_options(job);
    fs::write(
        MODPROBE,
        format!(
            "#!/bin/sh\nexec /sbin/modprobe {} \"$@\"\n",
            options.display()
        ),
    )?;
    fs::set_permissions(MODPROBE, fs::Permissions::from_mode(0o755))?;
    fs::write("/proc/sys/kernel/modprobe", MODPROBE)?;
    for file in modules::to_load(job.modules.as_deref(), MODULES)? {
        if let Err(error) = modules::load(&file) {
            // One that the processor does not suit, such as a crc32c variant, is no reason to stop. It is on the console.
            eprintln!("testbed: cannot load {}: {error}", file.display());
        }
    }
    Ok(())
}

/// Sets the flag `IFF_UP` of the interface `lo`.
fn loopback_up() -> io::Result<()> {
    // SAFETY: the call takes three integers and returns a new descriptor or -1.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeroes is a valid request: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: the request outlives the call, and SIOCSIFFLAGS takes one.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
