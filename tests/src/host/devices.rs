//! PCI devices of a virtual host that exist to be given to guests, behind the IOMMU that every virtual host has.
//!
//! ```text
//! 00:10.0  NVMe disk           00:11.0  NVMe disk, for the host to compare with
//! 00:12.0  e1000e card, which is on a wire with
//! 00:13.0  e1000e card, for the host
//! 00:14.0  sound controller (interrupt line, MSI, no MSI-X)
//! 00:15.0  USB controller, and
//! 00:15.1  sound controller, two functions of one slot, which the IOMMU cannot tell apart
//! ```
//!
//! The controller in that slot is none of Intel's: of theirs on the root bus Linux takes for granted that they keep apart.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The NVMe disk that guests are given.
pub const DISK: &str = "0000:00:10.0";
/// Another one.
pub const SECOND_DISK: &str = "0000:00:11.0";
/// The card that guests are given.
pub const CARD: &str = "0000:00:12.0";
/// The card at the other end of its wire.
pub const PEER: &str = "0000:00:13.0";
/// A sound controller.
pub const SOUND: &str = "0000:00:14.0";
/// Two functions of one slot.
pub const SIBLINGS: [&str; 2] = ["0000:00:15.0", "0000:00:15.1"];

/// All of them.
pub const ALL: [&str; 7] = [
    DISK,
    SECOND_DISK,
    CARD,
    PEER,
    SOUND,
    SIBLINGS[0],
    SIBLINGS[1],
];

/// The size of each disk in bytes.
pub const DISK_SIZE: u64 = 64 << 20;

/// Makes what the devices are on, in the directory of a run.
pub(super) fn make(run: &Path) -> io::Result<()> {
    for number in 0..2 {
        File::create(disk(run, number))?.set_len(DISK_SIZE)?;
    }
    Ok(())
}

fn disk(run: &Path, number: u32) -> PathBuf {
    run.join(format!("nvme{number}"))
}

/// The arguments with which QEMU has them.
pub(super) fn arguments(run: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = Vec::new();
    for number in 0..2 {
        line.push("-drive".into());
        line.push(super::qemu::with_path(
            &format!("if=none,id=nvme{number},format=raw,cache=unsafe,file="),
            &disk(run, number),
        ));
    }
    let devices = [
        "nvme,drive=nvme0,serial=orlop0,addr=0x10",
        "nvme,drive=nvme1,serial=orlop1,addr=0x11",
        "e1000e,netdev=wire0,mac=52:54:00:00:00:01,addr=0x12",
        "e1000e,netdev=wire1,mac=52:54:00:00:00:02,addr=0x13",
        "intel-hda,addr=0x14",
        "qemu-xhci,multifunction=on,addr=0x15.0",
        "intel-hda,addr=0x15.1",
    ];
    for number in 0..2 {
        line.push("-netdev".into());
        line.push(format!("hubport,id=wire{number},hubid=0").into());
    }
    for device in devices {
        line.push("-device".into());
        line.push(device.into());
    }
    line
}
