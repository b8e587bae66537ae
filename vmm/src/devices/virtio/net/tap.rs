//! The host's side: a tap, opened by its name or handed over by its descriptors, one for each pair of queues.
//!
//! What is read from it and written to it is an Ethernet frame behind a `struct virtio_net_hdr` of the guest's own form, so that
//! packets pass between guest memory and the kernel as they are.

use std::ffi::CStr;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_uint};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::config::HEADER;

const DEVICE: &str = "/dev/net/tun";
/// What a tap of ours is: Ethernet frames, nothing before them but the virtio header.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// What cannot be told to a driver as an MTU (virtio 1.2, 5.1.4.1).
const MTU_MIN: u16 = 68;
/// As many packets as are thrown away at a start, more than a tap keeps (its txqueuelen is 500 or 1000).
const STALE_MAX: usize = 4096;

/// What a network device is connected to.
pub trait Port: Debug + Send + Sync {
    /// What people call it.
    fn name(&self) -> &str;

    /// A descriptor for each pair of queues, which does not block: packets are read from it and written to it.
    fn queues(&self) -> &[File];

    /// What may be left undone in packets that are read, as TUN_F_ flags.
    ///
    /// # Errors
    /// What the host says.
    fn set_offloads(&self, flags: c_uint) -> io::Result<()>;

    /// Whether what it was connected to is gone.
    fn is_gone(&self) -> bool;

    /// From now on only the first `count` queues are given packets.
    ///
    /// # Errors
    /// What the host says.
    fn use_queues(&self, count: usize) -> io::Result<()>;
}

/// Whether an error of a port says that what it was connected to is gone.
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// Throws away what came while nobody was there to take it. It may also be in a form that the next driver does not take.
pub fn drain(queue: &File) {
    // The rest of a longer packet goes with it.
    let mut packet = [0; 64];
    let mut queue = queue;
    for _ in 0..STALE_MAX {
        if queue.read(&mut packet).is_err() {
            break;
        }
    }
}

/// Which tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The one of this name, with so many queues. It is made if it is absent, and goes with the VM then.
    Named(String, u16),
    /// That of these descriptors, a queue each.
    Given(Vec<RawFd>),
}

/// A tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    mtu: Option<u16>,
    uso: bool,
    queues: Vec<File>,
    /// Which of them are given packets.
    attached: Vec<AtomicBool>,
}

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No driver.
    #[error("a network device needs {DEVICE}: load its driver with `modprobe tun`")]
    NoDriver(#[source] io::Error),
    /// No permission.
    #[error(
        "the tap {0} may not be used: run as root, or make it beforehand with `ip tuntap add dev {0} mode tap user USER`"
    )]
    NotAllowed(String, #[source] io::Error),
    /// Another program has it.
    #[error("the tap {0} is in use by another program: give each VM a tap of its own")]
    InUse(String, #[source] io::Error),
    /// It has one queue, and is no tap at all perhaps.
    #[error(
        "{name} is no tap with {queues} queues: make one with `ip tuntap add dev {name} mode tap{more}`"
    )]
    Unsuitable {
        /// Its name.
        name: String,
        /// How many it should have.
        queues: usize,
        /// What `ip` needs to be told.
        more: &'static str,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Not what we need.
    #[error(
        "descriptor {fd} is not a queue of a tap made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR{detail}"
    )]
    NotATap {
        /// The descriptor.
        fd: RawFd,
        /// What it is.
        detail: &'static str,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Whatever the host says.
    #[error("cannot {what} the tap {name}")]
    System {
        /// The tap.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

impl Tap {
    /// Opens all queues of a tap.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(source: &Source) -> Result<Self, OpenError> {
        let (name, queues) = match source {
            Source::Named(name, count) => (name.clone(), by_name(name, (*count).into())?),
            Source::Given(fds) => by_descriptors(fds)?,
        };
        let system = |what| {
            let name = name.clone();
            move |source| OpenError::System { name, what, source }
        };
        for queue in &queues {
            set_header_size(queue).map_err(system("set the header's size of"))?;
        }
        let Some(first) = queues.first() else {
            return Err(system("find a queue of")(io::ErrorKind::NotFound.into()));
        };
        let all = libc::TUN_F_CSUM
            | libc::TUN_F_TSO4
            | libc::TUN_F_TSO6
            | libc::TUN_F_USO4
            | libc::TUN_F_USO6;
        let uso = set_offloads(first, all).is_ok();
        set_offloads(first, 0).map_err(system("set the offloads of"))?;
        Ok(Tap {
            mtu: mtu(&name, first),
            uso,
            attached: queues.iter().map(|_| AtomicBool::new(true)).collect(),
            queues,
            name,
        })
    }

    /// Its MTU; `None` where that cannot be told: it is in another network namespace.
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Whether it segments UDP.
    pub fn segments_udp(&self) -> bool {
        self.uso
    }
}

impl Port for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn queues(&self) -> &[File] {
        &self.queues
    }

    fn set_offloads(&self, flags: c_uint) -> io::Result<()> {
        let first = self.queues.first();
        first.map_or(Ok(()), |queue| set_offloads(queue, flags))
    }

    fn is_gone(&self) -> bool {
        let first = self.queues.first();
        first.is_some_and(|queue| interface(queue).is_err_and(|error| is_gone(&error)))
    }

    fn use_queues(&self, count: usize) -> io::Result<()> {
        for (index, (queue, attached)) in self.queues.iter().zip(&self.attached).enumerate() {
            let wanted = index < count;
            if attached.load(Ordering::Relaxed) != wanted {
                attach(queue, wanted)?;
                attached.store(wanted, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Opens `count` queues of the tap `name`.
fn by_name(name: &str, count: usize) -> Result<Vec<File>, OpenError> {
    let several = if count > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut queues = Vec::with_capacity(count);
    for _ in 0..count {
        let queue = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => OpenError::NotAllowed(name.into(), error),
                _ => OpenError::NoDriver(error),
            })?;
        let joined = match join(&queue, name, FLAGS | several) {
            // A tap that was made for several queues also works with one, but must be told.
            Err(error) if is(&error, libc::EINVAL) && count == 1 => {
                join(&queue, name, FLAGS | libc::IFF_MULTI_QUEUE).map_err(|_| error)
            }
            joined => joined,
        };
        joined.map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => OpenError::NotAllowed(name.into(), source),
            Some(libc::EBUSY) => OpenError::InUse(name.into(), source),
            Some(libc::EINVAL | libc::E2BIG) => OpenError::Unsuitable {
                name: name.into(),
                queues: count,
                more: if count > 1 { " multi_queue" } else { "" },
                source,
            },
            _ => OpenError::System {
                name: name.into(),
                what: "open",
                source,
            },
        })?;
        queues.push(queue);
    }
    Ok(queues)
}

/// Takes copies of descriptors that this process was started with, and sees that they are the queues of one tap.
fn by_descriptors(fds: &[RawFd]) -> Result<(String, Vec<File>), OpenError> {
    let mut found: Option<String> = None;
    let mut queues = Vec::with_capacity(fds.len());
    for &fd in fds {
        let not_a_tap = |detail| move |source| OpenError::NotATap { fd, detail, source };
        // A number that is not open is found out by the first call. The original is left to whoever opened it.
        // SAFETY: the descriptor is only borrowed for a call that makes a new one of it, or fails.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let owned: OwnedFd = borrowed.try_clone_to_owned().map_err(not_a_tap(""))?;
        let queue = File::from(owned);
        let (name, flags) = interface(&queue).map_err(not_a_tap(""))?;
        let refuse = |detail| not_a_tap(detail)(io::ErrorKind::InvalidInput.into());
        if flags & FLAGS != FLAGS {
            return Err(refuse(": it lacks one of them"));
        }
        if found.as_ref().is_some_and(|found| *found != name) {
            return Err(refuse(", the same one as the other descriptors"));
        }
        set_nonblocking(&queue).map_err(not_a_tap(""))?;
        found = Some(name);
        queues.push(queue);
    }
    Ok((found.unwrap_or_default(), queues))
}

fn is(error: &io::Error, number: c_int) -> bool {
    error.raw_os_error() == Some(number)
}

/// A request about the interface `name`, cut off where it would not fit.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid request: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from.cast_signed();
    }
    request
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `queue` a queue of the tap `name`.
fn join(queue: &File, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    checked(unsafe { ioctl_with_mut_ref(queue, libc::TUNSETIFF as _, &mut request) })
}

/// Which interface a queue belongs to, and the flags that it was made with.
fn interface(queue: &File) -> io::Result<(String, c_int)> {
    let mut request = request("");
    // SAFETY: TUNGETIFF writes one ifreq, which lives through the call.
    checked(unsafe { ioctl_with_mut_ref(queue, libc::TUNGETIFF as _, &mut request) })?;
    let name = request.ifr_name.map(i8::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    // SAFETY: TUNGETIFF has set the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name.to_string_lossy().into_owned(), flags.into()))
}

fn set_header_size(queue: &File) -> io::Result<()> {
    let size = HEADER as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
    checked(unsafe { ioctl_with_ref(queue, libc::TUNSETVNETHDRSZ as _, &size) })
}

fn set_offloads(queue: &File, flags: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number.
    checked(unsafe { ioctl_with_val(queue, libc::TUNSETOFFLOAD as _, flags.into()) })
}

fn attach(queue: &File, attached: bool) -> io::Result<()> {
    let flag = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let mut request = request("");
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one ifreq, which lives through the call.
    checked(unsafe { ioctl_with_ref(queue, libc::TUNSETQUEUE as _, &request) })
}

fn set_nonblocking(queue: &File) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: FIONBIO reads one int, which lives through the call.
    checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::FIONBIO, &raw const on) })
}

/// The MTU of the tap called `name` that has the queue `queue`, where it can be asked.
fn mtu(name: &str, queue: &File) -> Option<u16> {
    // Any socket will do.
    let socket = UnixDatagram::unbound().ok()?;
    // A tap may be in another network namespace, and an interface in this one may have its name. A queue tells of its own tap.
    let here = hardware_address(&socket, name).ok()?;
    if hardware_address(queue, name).ok()? != here {
        return None;
    }
    let mut request = request(name);
    // SAFETY: SIOCGIFMTU reads and writes one ifreq, which lives through the call.
    checked(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFMTU as _, &mut request) }).ok()?;
    // SAFETY: SIOCGIFMTU has set the MTU.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u16::try_from(mtu).ok().filter(|mtu| *mtu >= MTU_MIN)
}

fn hardware_address(asked: &impl AsRawFd, name: &str) -> io::Result<[libc::c_char; 14]> {
    let mut request = request(name);
    // SAFETY: SIOCGIFHWADDR reads and writes one ifreq, which lives through the call.
    checked(unsafe { ioctl_with_mut_ref(asked, libc::SIOCGIFHWADDR as _, &mut request) })?;
    // SAFETY: SIOCGIFHWADDR has set the address.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data)
}
