//! Taps on the host of a story, each with a network of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use orlop_testbed::stories;

/// A tap with an address, which is gone when this is dropped.
pub struct Tap {
    pub name: String,
    /// The third byte of the addresses: the host is 10.77.N.1, the guest 10.77.N.2.
    net: u8,
}

impl Tap {
    /// With so many queues.
    pub fn new(queues: u16) -> Self {
        static NETS: AtomicU8 = AtomicU8::new(1);
        let net = NETS.fetch_add(1, Ordering::Relaxed);
        let tap = Tap {
            name: format!("orlop{net}"),
            net,
        };
        let name = &tap.name;
        let several = if queues > 1 { " multi_queue" } else { "" };
        ip(&format!("tuntap add dev {name} mode tap{several}"));
        ip(&format!("addr add 10.77.{net}.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        tap
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("10.77.{}.1", self.net)
    }

    /// The guest's address.
    pub fn guest(&self) -> String {
        format!("10.77.{}.2", self.net)
    }

    /// The address of all stations.
    pub fn broadcast(&self) -> String {
        format!("10.77.{}.255", self.net)
    }

    /// What the guest does to have its end.
    pub fn bring_up(&self) -> String {
        let guest = self.guest();
        format!("load virtio_net; ip addr add {guest}/24 dev eth0; ip link set eth0 up; ")
    }

    /// Deletes it, whoever uses it.
    pub fn delete(&self) {
        ip(&format!("link delete {}", self.name));
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A story may have deleted it.
        let _ = Command::new("ip")
            .args(["link", "delete", &self.name])
            .output();
    }
}

/// Runs `ip` with these words.
pub fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {line}: {done:?}");
}

/// A queue of the tap `name`, as a program that hands it over opens it.
pub fn queue_of(name: &str) -> File {
    let queue = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all zeroes is a valid request: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    queue
}

/// Whether this host has vhost-net; says so if not.
pub fn has_vhost() -> bool {
    let has = Path::new("/dev/vhost-net").exists();
    if !has {
        stories::skip("there is no /dev/vhost-net here; `modprobe vhost_net` makes it");
    }
    has
}
