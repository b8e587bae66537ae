//! Processors that come while the guest runs: the kernel tells of them, and they do nothing until they are brought online.
//!
//! On other machines that is udev's to do, by a message that the kernel sends to all that listen (lib/kobject_uevent.c).

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The multicast group of the kernel's own messages.
const KERNEL_EVENTS: u32 = 1;
/// The kernel's are shorter.
const MESSAGE: usize = 8192;
const DEVICES: &str = "/sys/devices/system/cpu";

/// Brings processors online as they come. Returns only when the kernel does not tell of them.
pub fn follow() {
    let done = open().and_then(|socket| {
        // What came before anybody listened.
        for number in 1..=u32::from(u8::MAX) {
            bring_online(&Path::new(DEVICES).join(format!("cpu{number}")));
        }
        listen(&socket)
    });
    if let Err(errno) = done {
        log::warn!("processors that come will not be used: {}", errno.desc());
    }
}

fn open() -> nix::Result<OwnedFd> {
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
    Ok(events)
}

fn listen(events: &OwnedFd) -> nix::Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        match recv(events.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(length) => {
                let message = message.get(..length).unwrap_or_default();
                if let Some(processor) = added(message) {
                    bring_online(&processor);
                }
            }
            Err(Errno::EINTR) => {}
            // Some were lost, of which one might have been a processor; the guest does without.
            Err(Errno::ENOBUFS) => log::warn!("the kernel's events came too fast"),
            Err(errno) => return Err(errno),
        }
    }
}

/// The directory of a processor that has come: `add@/devices/system/cpu/cpu2`, and further words behind zero bytes.
fn added(message: &[u8]) -> Option<PathBuf> {
    let head = message.split(|byte| *byte == 0).next()?;
    let head = std::str::from_utf8(head).ok()?;
    let number = head.strip_prefix("add@/devices/system/cpu/cpu")?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Path::new(DEVICES).join(format!("cpu{number}")))
}

fn bring_online(processor: &Path) {
    let file = processor.join("online");
    // One that is online already, or cannot be taken offline, is well.
    if std::fs::read_to_string(&file).is_ok_and(|text| text.trim() == "0")
        && let Err(error) = std::fs::write(&file, "1")
    {
        log::warn!("{}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_comes_is_told_from_all_else() {
        let message = b"add@/devices/system/cpu/cpu12\0ACTION=add\0SUBSYSTEM=cpu\0";
        let directory = added(message).unwrap();
        assert_eq!(directory, Path::new("/sys/devices/system/cpu/cpu12"));
        for other in [
            &b"remove@/devices/system/cpu/cpu1\0ACTION=remove\0"[..],
            b"offline@/devices/system/cpu/cpu1\0",
            b"add@/devices/system/cpu/cpu1/cache\0",
            b"add@/devices/system/cpu/cpu\0",
            b"add@/devices/system/cpu/cpufreq\0",
            b"add@/devices/pci0000:00/0000:00:01.0\0",
            b"add@/devices/system/cpu/cpu\xff\0",
            b"",
        ] {
            assert_eq!(added(other), None);
        }
    }

    #[test]
    fn one_that_is_offline_is_brought_online() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("online");
        bring_online(directory.path());
        assert!(!file.exists());
        std::fs::write(&file, "0\n").unwrap();
        bring_online(directory.path());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    }

    #[test]
    fn the_kernels_events_can_be_heard() {
        open().unwrap();
    }
}
