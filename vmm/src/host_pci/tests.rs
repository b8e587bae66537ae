//! A made-up host: directories and links as sysfs has them. Its kernel does nothing, so drivers are changed by hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::blockers::Blocker;
use super::*;

struct Made {
    directory: tempfile::TempDir,
    system: System,
}

impl Made {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = Made {
            system: System::at(directory.path()),
            directory,
        };
        for driver in ["nvme", "e1000e", "vfio-pci", "pcieport"] {
            made.make(&format!("sys/bus/pci/drivers/{driver}"));
        }
        made.write("sys/bus/pci/drivers_probe", "");
        made.make("sys/bus/pci/devices");
        made.make("sys/class/block");
        made.make("sys/class/net");
        made.write("proc/net/route", "Iface\tDestination\tGateway\n");
        made
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn make(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, at: &str, to: &Path) {
        let at = self.path(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(to, at).unwrap();
    }

    /// A device with a class, in a group, with a driver.
    fn device(&self, address: &str, class: u32, group: Option<u32>, driver: Option<&str>) {
        let real = format!("sys/devices/pci0000:00/{address}");
        self.write(&format!("{real}/class"), &format!("0x{class:06x}\n"));
        self.write(&format!("{real}/vendor"), "0x8086\n");
        self.write(&format!("{real}/device"), "0x10d3\n");
        self.write(&format!("{real}/driver_override"), "(null)\n");
        self.link(&format!("sys/bus/pci/devices/{address}"), &self.path(&real));
        if let Some(group) = group {
            let directory = format!("sys/kernel/iommu_groups/{group}");
            self.make(&format!("{directory}/devices"));
            self.link(&format!("{real}/iommu_group"), &self.path(&directory));
            self.link(&format!("{directory}/devices/{address}"), &self.path(&real));
        }
        if let Some(driver) = driver {
            self.drive(address, driver);
        }
    }

    fn drive(&self, address: &str, driver: &str) {
        let link = self.path(&format!("sys/devices/pci0000:00/{address}/driver"));
        let _ = fs::remove_file(&link);
        symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), link).unwrap();
    }

    fn blockers(&self, address: &str) -> Vec<Blocker> {
        let device = self.system.device(address.parse().unwrap()).unwrap();
        blockers::of(&self.system, &device)
    }

    fn overridden(&self, address: &str) -> String {
        let path = format!("sys/devices/pci0000:00/{address}/driver_override");
        fs::read_to_string(self.path(&path)).unwrap()
    }
}

const DISK: &str = "0000:65:00.0";
const CARD: &str = "0000:66:00.0";
const NVME: u32 = 0x01_0802;
const NETWORK: u32 = 0x02_0000;
const DISPLAY: u32 = 0x03_0000;
const BRIDGE: u32 = 0x06_0400;

fn disk(made: &Made) {
    made.device(DISK, NVME, Some(7), Some("nvme"));
    let real = made.path(&format!("sys/devices/pci0000:00/{DISK}/nvme/nvme0/nvme0n1"));
    for (name, number) in [("nvme0n1", "259:0"), ("nvme0n1p1", "259:1")] {
        let place = if name == "nvme0n1" {
            real.clone()
        } else {
            real.join(name)
        };
        fs::create_dir_all(place.join("holders")).unwrap();
        fs::write(place.join("dev"), format!("{number}\n")).unwrap();
        made.link(&format!("sys/class/block/{name}"), &place);
    }
}

#[test]
fn a_disk_that_is_mounted_or_swapped_to_stays() {
    let made = Made::new();
    disk(&made);
    assert_eq!(made.blockers(DISK), []);
    made.write(
        "proc/1/mountinfo",
        "29 1 259:1 / / rw - ext4 /dev/root rw\n",
    );
    let mounted = Blocker::Disk("nvme0n1p1".into(), "mounted".into());
    assert_eq!(made.blockers(DISK), [mounted]);
    made.write(
        "proc/1/mountinfo",
        "29 1 252:0 / / rw - ext4 /dev/mapper/r rw\n",
    );
    made.write(
        "proc/swaps",
        "Filename Type\n/dev/nvme0n1 partition 1 0 -2\n",
    );
    let swap = Blocker::Disk("nvme0n1".into(), "used for swapping".into());
    // A volume on the partition is mounted as well.
    made.write("sys/devices/virtual/block/dm-0/dev", "252:0\n");
    made.make("sys/devices/virtual/block/dm-0/holders");
    made.link(
        "sys/class/block/dm-0",
        &made.path("sys/devices/virtual/block/dm-0"),
    );
    made.make("sys/class/block/nvme0n1p1/holders/dm-0");
    let found = made.blockers(DISK);
    assert!(found.contains(&swap), "{found:?}");
    let volume = Blocker::Disk("nvme0n1p1".into(), "part of dm-0, which is mounted".into());
    assert!(found.contains(&volume), "{found:?}");
}

#[test]
fn a_card_with_the_default_route_stays_also_behind_a_bridge() {
    let made = Made::new();
    made.device(CARD, NETWORK, Some(8), Some("e1000e"));
    let real = made.path(&format!("sys/devices/pci0000:00/{CARD}/net/eth0"));
    fs::create_dir_all(&real).unwrap();
    made.link("sys/class/net/eth0", &real);
    assert_eq!(made.blockers(CARD), []);
    let route = |interface: &str, destination: &str, mask: &str| {
        let line =
            format!("{interface}\t{destination}\t0100000A\t0003\t0\t0\t0\t{mask}\t0\t0\t0\n");
        made.write("proc/net/route", &format!("Iface\tDestination\n{line}"));
    };
    route("eth0", "0000000A", "00FFFFFF");
    assert_eq!(made.blockers(CARD), []);
    route("eth0", "00000000", "00000000");
    let blocked = [Blocker::DefaultRoute("eth0".into())];
    assert_eq!(made.blockers(CARD), blocked);
    route("br0", "00000000", "00000000");
    assert_eq!(made.blockers(CARD), []);
    made.make("sys/devices/virtual/net/br0");
    symlink(
        made.path("sys/devices/virtual/net/br0"),
        real.join("master"),
    )
    .unwrap();
    assert_eq!(made.blockers(CARD), blocked);
    made.write("proc/net/route", "");
    let zeros = "0".repeat(32);
    let line = format!("{zeros} 00 {zeros} 00 {zeros} 0 0 0 0 eth0\n");
    made.write("proc/net/ipv6_route", &line);
    assert_eq!(made.blockers(CARD), blocked);
}

#[test]
fn what_the_host_needs_is_refused_for_the_whole_group_and_nothing_is_written() {
    let made = Made::new();
    made.device(DISK, NVME, Some(7), Some("nvme"));
    made.device("0000:65:00.1", DISPLAY, Some(7), None);
    made.write("sys/devices/pci0000:00/0000:65:00.1/boot_vga", "1\n");
    made.device("0000:00:01.0", BRIDGE, Some(7), Some("pcieport"));
    let refused = made.system.bind(DISK.parse().unwrap()).unwrap_err();
    let said = refused.to_string();
    assert!(
        said.contains("0000:65:00.1") && said.contains("boots on"),
        "{said}"
    );
    assert_eq!(made.overridden(DISK), "(null)\n");
    made.device(CARD, NETWORK, None, None);
    let refused = made.system.bind(CARD.parse().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("intel_iommu=on"), "{refused}");
    let bridge = made.system.bind("0000:00:01.0".parse().unwrap());
    assert!(bridge.unwrap_err().to_string().contains("bridge"));
    let none = made.system.bind("0000:99:00.0".parse().unwrap());
    assert!(none.unwrap_err().to_string().contains("orlop pci ls"));
}

#[test]
fn what_is_vfios_already_stays_and_what_does_not_become_it_is_told() {
    let made = Made::new();
    made.device(DISK, NVME, Some(7), Some("vfio-pci"));
    let moved = made.system.bind(DISK.parse().unwrap()).unwrap();
    assert_eq!(moved[0].from.as_deref(), Some("vfio-pci"));
    assert_eq!(made.overridden(DISK), "(null)\n", "nothing was done");
    // The made-up kernel does not look for a driver.
    made.device(CARD, NETWORK, Some(8), None);
    let refused = made.system.bind(CARD.parse().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("no driver's"), "{refused}");
    let probed = fs::read_to_string(made.path("sys/bus/pci/drivers_probe")).unwrap();
    assert_eq!(probed, CARD, "it was asked to");
    assert_eq!(made.overridden(CARD), "\n", "and it is as it was");
}

#[test]
fn a_claim_is_kept_and_holds_for_what_was_claimed() {
    let made = Made::new();
    made.device(DISK, NVME, Some(7), Some("vfio-pci"));
    let (disk, gpu): (claims::Name, claims::Name) =
        ("disk".parse().unwrap(), "gpu".parse().unwrap());
    let address: HostAddress = DISK.parse().unwrap();
    assert_eq!(made.system.claims().unwrap(), []);
    made.system.claim(&disk, &[address]).unwrap();
    made.system.claim(&disk, &[address]).unwrap();
    let kept = made.system.claims().unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].devices.len(), 1);
    assert_eq!(kept[0].name.resource(), "pci.orlop.dev/disk");
    made.system.apply(&kept[0]).unwrap();
    let taken = made.system.claim(&gpu, &[address]).unwrap_err();
    assert!(
        taken.to_string().contains("orlop pci release disk"),
        "{taken}"
    );
    made.write(&format!("sys/devices/pci0000:00/{DISK}/device"), "0x1234\n");
    let moved = made.system.apply(&kept[0]).unwrap_err().to_string();
    assert!(
        moved.contains("8086:10d3") && moved.contains("8086:1234"),
        "{moved}"
    );
    made.system.release(&disk).unwrap();
    assert_eq!(made.system.claims().unwrap(), []);
    assert!(made.system.release(&disk).is_err());
    made.write("etc/orlop/pci.d/bad.toml", "device = 1");
    let bad = made.system.claims().unwrap_err().to_string();
    assert!(bad.contains("bad.toml"), "{bad}");
    for name in ["", "A", "a_b", "-a", "a/b", ".."] {
        assert!(name.parse::<claims::Name>().is_err(), "{name}");
    }
}
