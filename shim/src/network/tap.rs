//! Taps in the namespace of the calling thread.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::c_int;

const DEVICE: &str = "/dev/net/tun";
/// As `orlop run --net fd=` takes it: Ethernet frames, nothing before them but the virtio header.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A tap, which goes when its descriptors are closed.
#[derive(Debug)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// A descriptor for each queue.
    pub queues: Vec<OwnedFd>,
}

/// Makes a tap that is not there yet.
///
/// # Errors
/// What the system says.
pub fn make(name: &str, queues: u32) -> io::Result<Tap> {
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut made = Vec::new();
    for number in 0..queues {
        let queue = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)?;
        // The first must not find one that somebody else has.
        let first = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
        attach(&queue, name, FLAGS | several | first)?;
        made.push(queue.into());
    }
    Ok(Tap {
        name: name.to_owned(),
        queues: made,
    })
}

fn attach(queue: &File, name: &str, flags: c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid request: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from.cast_signed();
    }
    // The flags fill the sixteen bits; the highest of them is a sign to the type alone.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let given = request.ifr_name.map(i8::cast_unsigned);
    let given = CStr::from_bytes_until_nul(&given).unwrap_or_default();
    if given.to_bytes() != name.as_bytes() {
        return Err(io::Error::other("it has got another name"));
    }
    Ok(())
}

/// Has this machine's own stack say nothing on a tap when that is set up: the guest would hear it.
pub fn keep_quiet(name: &str) {
    // Where there is no IPv6 there is nothing to be said.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}
