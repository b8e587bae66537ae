//! The host's own use of its PCI devices.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sha2::{Digest, Sha256};

/// Has the host load a module that drives devices. A kernel that has none loaded has its drivers built in, or has them not.
pub fn load(module: &str) {
    if fs::read("/proc/modules").unwrap().is_empty() {
        return;
    }
    let status = Command::new("sh")
        .args(["-c", &format!("modprobe $MODPROBE_OPTIONS {module}")])
        .status();
    assert!(status.unwrap().success(), "modprobe {module}");
}

/// Whether the host's kernel has a driver, by its name on the bus.
pub fn has_driver(name: &str) -> bool {
    Path::new("/sys/bus/pci/drivers").join(name).exists()
}

pub fn path(address: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address)
}

pub fn is_there(address: &str) -> bool {
    path(address).exists()
}

/// The driver that a device is bound to.
pub fn driver(address: &str) -> Option<String> {
    let driver = fs::read_link(path(address).join("driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

/// Takes a device from its driver, if it has one.
pub fn release(address: &str) {
    if driver(address).is_some() {
        fs::write(path(address).join("driver/unbind"), address).unwrap();
    }
}

/// Gives a device to a driver, or to whichever takes it.
pub fn give(address: &str, wanted: Option<&str>) {
    release(address);
    let name = format!("{}\n", wanted.unwrap_or(""));
    fs::write(path(address).join("driver_override"), name).unwrap();
    fs::write("/sys/bus/pci/drivers_probe", address).unwrap();
    if let Some(wanted) = wanted {
        assert_eq!(driver(address).as_deref(), Some(wanted));
    }
}

/// A disk of the host's as long as this is there.
pub struct HostDisk {
    address: &'static str,
    node: PathBuf,
}

impl HostDisk {
    /// Has the host drive an NVMe disk.
    pub fn take(address: &'static str) -> Self {
        give(address, Some("nvme"));
        let block = || {
            let controllers = fs::read_dir(path(address).join("nvme")).ok()?;
            let controller = controllers.flatten().next()?.path();
            let names = fs::read_dir(controller).ok()?.flatten();
            let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let name = names.find(|name| name.starts_with("nvme") && name.contains('n'))?;
            // As `nvme0c0n1` where it may be reached by several ways.
            let node = Path::new("/dev").join(name.replace("c0", ""));
            node.exists().then_some(node)
        };
        let end = Instant::now() + Duration::from_secs(60);
        let node = loop {
            if let Some(node) = block() {
                break node;
            }
            assert!(Instant::now() < end, "{address} is no disk of the host's");
            std::thread::sleep(Duration::from_millis(50));
        };
        HostDisk { address, node }
    }

    /// Where it is.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Its first bytes.
    pub fn first(&self, bytes: u64) -> Vec<u8> {
        let mut data = Vec::new();
        let file = fs::File::open(&self.node).unwrap();
        file.take(bytes).read_to_end(&mut data).unwrap();
        assert_eq!(data.len() as u64, bytes);
        data
    }

    /// The checksum of its first bytes.
    pub fn sum(&self, bytes: u64) -> String {
        let digest = Sha256::digest(self.first(bytes));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// How long it takes to read so many pieces of 64 KiB, as a guest does it.
    pub fn time(&self, pieces: u64) -> Duration {
        let begin = Instant::now();
        let done = Command::new("/bin/busybox")
            .args(["dd", "of=/dev/null", "bs=64k", "iflag=direct"])
            .arg(format!("if={}", self.node.display()))
            .arg(format!("count={pieces}"))
            .output();
        assert!(done.unwrap().status.success());
        begin.elapsed()
    }

    /// Whether it works: what is written is read.
    pub fn works(&self) {
        let data: Vec<u8> = (0..1 << 20).map(|at: u32| (at ^ at >> 9) as u8).collect();
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .open(&self.node)
            .unwrap();
        file.seek(SeekFrom::Start(32 << 20)).unwrap();
        file.write_all(&data).unwrap();
        file.sync_all().unwrap();
        drop_caches();
        let mut read = vec![0; data.len()];
        file.seek(SeekFrom::Start(32 << 20)).unwrap();
        file.read_exact(&mut read).unwrap();
        assert!(read == data, "what was written was not read");
    }

    /// Gives it to VFIO.
    pub fn give_away(self) {
        let address = self.address;
        drop(self);
        give(address, Some("vfio-pci"));
    }
}

impl Drop for HostDisk {
    fn drop(&mut self) {
        if driver(self.address).as_deref() == Some("nvme") {
            release(self.address);
        }
    }
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// How many interrupts the host has taken for a device that VFIO has.
pub fn interrupts(address: &str) -> u64 {
    let table = fs::read_to_string("/proc/interrupts").unwrap();
    let lines = table
        .lines()
        .filter(|line| line.contains("vfio") && line.contains(address));
    lines
        .flat_map(|line| {
            let numbers = line.split_whitespace().skip(1);
            numbers.map_while(|word| word.parse::<u64>().ok())
        })
        .sum()
}

/// The node of a device's group.
pub fn node(address: &str) -> PathBuf {
    let group = fs::read_link(path(address).join("iommu_group")).unwrap();
    Path::new("/dev/vfio").join(group.file_name().unwrap())
}

/// A device's own node, which it has while it is VFIO's, on a host that has iommufd.
fn own_node(address: &str) -> Option<PathBuf> {
    let mut names = fs::read_dir(path(address).join("vfio-dev")).ok()?;
    let name = names.next()?.ok()?.file_name();
    Some(Path::new("/dev/vfio/devices").join(name))
}

/// The files that a device is had by, which whoever is started next has open as well: the device's or its group's, and the IOMMU's.
pub fn open_for_children(address: &str) -> [fs::File; 2] {
    // A kernel may number devices for VFIO and have no nodes for them.
    let nodes = match own_node(address).filter(|own| own.exists()) {
        Some(own) => [own, "/dev/iommu".into()],
        None => [node(address), "/dev/vfio/vfio".into()],
    };
    nodes.map(|node| {
        let file = fs::File::options().read(true).write(true).open(node);
        let file = file.unwrap();
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        file
    })
}

/// Whether a process has a device, by whichever of VFIO's interfaces.
pub fn is_open(address: &str, id: u32) -> bool {
    let own = own_node(address);
    has_open(id, &node(address)) || own.is_some_and(|own| has_open(id, &own))
}

/// Whether a process has a file open.
pub fn has_open(id: u32, path: &Path) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{id}/fd")) else {
        return false;
    };
    files
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|file| file == path))
}
