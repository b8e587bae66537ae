//! What VFIO's files are asked, one call of the kernel's each (`linux/vfio.h`), with its errors as they are.
//!
//! The crate vfio-ioctls has these calls as well. It is not used: it numbers regions anew when one cannot be had, says nothing of reads
//! that failed, keeps the reasons of failures to itself, opens files by path only, and does not let go of a group's file, which each
//! life of a guest has to show to a KVM of its own.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vfio_bindings::bindings::vfio as sys;

/// The version of the interface that there has been since Linux 3.6.
const API_VERSION: i32 = 0;
/// As much as a region's capabilities may take.
const CAPABILITIES_MAX: usize = 64 << 10;

/// `_IO(';', 100 + number)`.
const fn request(number: libc::c_ulong) -> libc::c_ulong {
    0x3b00 | (sys::VFIO_BASE as libc::c_ulong + number)
}

const GET_API_VERSION: libc::c_ulong = request(0);
const CHECK_EXTENSION: libc::c_ulong = request(1);
const SET_IOMMU: libc::c_ulong = request(2);
const GROUP_GET_STATUS: libc::c_ulong = request(3);
const GROUP_SET_CONTAINER: libc::c_ulong = request(4);
const GROUP_GET_DEVICE_FD: libc::c_ulong = request(6);
const DEVICE_GET_INFO: libc::c_ulong = request(7);
const DEVICE_GET_REGION_INFO: libc::c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: libc::c_ulong = request(9);
const DEVICE_SET_IRQS: libc::c_ulong = request(10);
const DEVICE_RESET: libc::c_ulong = request(11);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);
const DEVICE_BIND_IOMMUFD: libc::c_ulong = request(18);
const DEVICE_ATTACH_IOMMUFD_PT: libc::c_ulong = request(19);

/// The result of a call; its error is the kernel's.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A call with a number, or with nothing.
fn call(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: those that are called so take a number, and touch no memory of this process.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request, argument) })
}

/// A call with a structure that the kernel reads and writes.
fn call_with<T>(file: &File, request: libc::c_ulong, argument: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: each is called with the structure that it takes, whose `argsz` says how long it is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

/// A call with bytes that the kernel reads and writes, as many as their first four say.
fn call_with_bytes(file: &File, request: libc::c_ulong, bytes: &mut [u8]) -> io::Result<i32> {
    // SAFETY: `argsz`, the first field of every structure that is sent so, is the slice's length.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request, bytes.as_mut_ptr()) })
}

fn open(path: impl AsRef<Path>) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// A structure's size, as its `argsz` is to be.
fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

/// An address space for DMA with Linux' first interface for them.
#[derive(Debug)]
pub struct Container(File);

impl Container {
    /// A new one, without groups.
    pub fn open() -> io::Result<Self> {
        Self::of(open("/dev/vfio/vfio")?)
    }

    /// That which is open already, without groups as well.
    pub fn of(file: File) -> io::Result<Self> {
        let container = Container(file);
        let version = call(&container.0, GET_API_VERSION, 0)?;
        let has_type1 = call(
            &container.0,
            CHECK_EXTENSION,
            sys::VFIO_TYPE1v2_IOMMU.into(),
        )?;
        if version == API_VERSION && has_type1 == 1 {
            Ok(container)
        } else {
            let what = "its VFIO has no IOMMU of type 1v2: load the module vfio_iommu_type1";
            Err(io::Error::new(io::ErrorKind::Unsupported, what))
        }
    }

    /// To be called when the first group is in it.
    pub fn set_iommu(&self) -> io::Result<()> {
        call(&self.0, SET_IOMMU, sys::VFIO_TYPE1v2_IOMMU.into()).map(drop)
    }

    /// Lets devices reach `len` bytes of this process at `host`, by the address `at`.
    ///
    /// # Safety
    /// The bytes must be mapped until they are unmapped here, and nobody may believe them to be unchanging.
    pub unsafe fn map(&self, at: u64, host: u64, len: u64) -> io::Result<()> {
        let mut map = sys::vfio_iommu_type1_dma_map {
            argsz: argsz::<sys::vfio_iommu_type1_dma_map>(),
            flags: sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: host,
            iova: at,
            size: len,
        };
        call_with(&self.0, IOMMU_MAP_DMA, &mut map).map(drop)
    }

    /// Takes that back for all mappings within the `len` bytes at `at`.
    pub fn unmap(&self, at: u64, len: u64) -> io::Result<()> {
        let mut unmap = sys::vfio_iommu_type1_dma_unmap {
            argsz: argsz::<sys::vfio_iommu_type1_dma_unmap>(),
            flags: 0,
            iova: at,
            size: len,
            ..Default::default()
        };
        call_with(&self.0, IOMMU_UNMAP_DMA, &mut unmap).map(drop)
    }
}

/// A group of devices that the IOMMU cannot tell apart. One process has it open at a time.
#[derive(Debug)]
pub struct Group(File);

impl Group {
    /// Opens the group of this number.
    pub fn open(number: u32) -> io::Result<Self> {
        open(format!("/dev/vfio/{number}")).map(Group)
    }

    /// One that is open already.
    pub fn of(file: File) -> Self {
        Group(file)
    }

    /// Whether all its devices are VFIO's, or nobody's.
    pub fn is_viable(&self) -> io::Result<bool> {
        let mut status = sys::vfio_group_status {
            argsz: argsz::<sys::vfio_group_status>(),
            flags: 0,
        };
        call_with(&self.0, GROUP_GET_STATUS, &mut status)?;
        Ok(status.flags & sys::VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Puts it into a container, until it is closed.
    pub fn join(&self, container: &Container) -> io::Result<()> {
        let mut fd = container.0.as_raw_fd();
        call_with(&self.0, GROUP_SET_CONTAINER, &mut fd).map(drop)
    }

    /// Opens the device of this name in it.
    pub fn device(&self, name: &str) -> io::Result<DeviceFile> {
        let name = CString::new(name).map_err(io::Error::other)?;
        // SAFETY: the call reads a C string, which lives through it.
        let fd = checked(unsafe {
            libc::ioctl(self.0.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr())
        })?;
        // SAFETY: the kernel has just made it for us.
        Ok(DeviceFile(unsafe { File::from_raw_fd(fd) }))
    }
}

impl AsRawFd for Group {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A device.
#[derive(Debug)]
pub struct DeviceFile(File);

/// What a device has.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// Whether it is a PCI device.
    pub is_pci: bool,
    /// Whether it can be reset by itself.
    pub resets: bool,
}

/// A part of a device that is read and written by its file, such as a BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its size in bytes; 0 where the device has no such part.
    pub size: u64,
    /// Where it is in the file.
    pub offset: u64,
    /// Which parts of it can be mapped: where they begin in it, and their sizes.
    pub mappable: Vec<(u64, u64)>,
}

impl DeviceFile {
    /// Opens a device by its own node below `/dev/vfio/devices`.
    pub fn open(path: &Path) -> io::Result<Self> {
        open(path).map(DeviceFile)
    }

    /// One that is open already by that node.
    pub fn of(file: File) -> Self {
        DeviceFile(file)
    }

    /// Binds it to an iommufd, and to an address space in that.
    pub fn bind(&self, iommufd: RawFd, address_space: u32) -> io::Result<()> {
        let mut bind = sys::vfio_device_bind_iommufd {
            argsz: argsz::<sys::vfio_device_bind_iommufd>(),
            iommufd,
            ..Default::default()
        };
        call_with(&self.0, DEVICE_BIND_IOMMUFD, &mut bind)?;
        let mut attach = sys::vfio_device_attach_iommufd_pt {
            argsz: argsz::<sys::vfio_device_attach_iommufd_pt>(),
            pt_id: address_space,
            ..Default::default()
        };
        call_with(&self.0, DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(drop)
    }

    /// What it has.
    pub fn info(&self) -> io::Result<DeviceInfo> {
        let mut info = sys::vfio_device_info {
            argsz: argsz::<sys::vfio_device_info>(),
            ..Default::default()
        };
        call_with(&self.0, DEVICE_GET_INFO, &mut info)?;
        Ok(DeviceInfo {
            is_pci: info.flags & sys::VFIO_DEVICE_FLAGS_PCI != 0,
            resets: info.flags & sys::VFIO_DEVICE_FLAGS_RESET != 0,
        })
    }

    /// A region by its number.
    pub fn region(&self, index: u32) -> io::Result<Region> {
        const SHORT: usize = size_of::<sys::vfio_region_info>();
        let ask = |len: usize| {
            let mut bytes = vec![0; len];
            put(&mut bytes, 0, len as u32);
            put(&mut bytes, 8, index);
            call_with_bytes(&self.0, DEVICE_GET_REGION_INFO, &mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let short = ask(SHORT)?;
        // It says how long it would be with its capabilities.
        match get(&short, 0).map(|wanted| wanted as usize) {
            Some(wanted) if wanted > SHORT => Ok(region(&ask(wanted.min(CAPABILITIES_MAX))?)),
            _ => Ok(region(&short)),
        }
    }

    /// How many interrupts of this kind (`VFIO_PCI_*_IRQ_INDEX`) it has.
    pub fn interrupts(&self, index: u32) -> io::Result<u32> {
        let mut info = sys::vfio_irq_info {
            argsz: argsz::<sys::vfio_irq_info>(),
            index,
            ..Default::default()
        };
        call_with(&self.0, DEVICE_GET_IRQ_INFO, &mut info)?;
        Ok(info.count)
    }

    /// Has its interrupts of a kind signal these, the first by the first; none of them any more when there are none.
    pub fn trigger(&self, index: u32, events: &[RawFd]) -> io::Result<()> {
        if events.is_empty() {
            let flags = sys::VFIO_IRQ_SET_DATA_NONE | sys::VFIO_IRQ_SET_ACTION_TRIGGER;
            return self.set_irqs(index, flags, 0, &[]);
        }
        let flags = sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(index, flags, events.len() as u32, &fds(events))
    }

    /// Has its interrupt line be let through again when this is signalled.
    pub fn unmask_by(&self, event: RawFd) -> io::Result<()> {
        let flags = sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_UNMASK;
        self.set_irqs(sys::VFIO_PCI_INTX_IRQ_INDEX, flags, 1, &fds(&[event]))
    }

    fn set_irqs(&self, index: u32, flags: u32, count: u32, data: &[u8]) -> io::Result<()> {
        // argsz, flags, index, start, count, data.
        const HEADER: usize = 20;
        let len = (HEADER + data.len()) as u32;
        let mut bytes: Vec<u8> = [len, flags, index, 0, count]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        bytes.extend_from_slice(data);
        match call_with_bytes(&self.0, DEVICE_SET_IRQS, &mut bytes)? {
            0 => Ok(()),
            // As many as the host could give.
            fewer => Err(io::Error::other(format!(
                "the host has {fewer} interrupts to give where {count} are wanted"
            ))),
        }
    }

    /// Resets it.
    pub fn reset(&self) -> io::Result<()> {
        call(&self.0, DEVICE_RESET, 0).map(drop)
    }

    /// Reads from a region. What cannot be read is ones, as on a bus where nothing answers.
    pub fn read(&self, region: &Region, at: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0xff);
        let place = place(region, at, data.len())?;
        let read = self.0.read_exact_at(data, place);
        if read.is_err() {
            data.fill(0xff);
        }
        read
    }

    /// Writes to a region.
    pub fn write(&self, region: &Region, at: u64, data: &[u8]) -> io::Result<()> {
        let place = place(region, at, data.len())?;
        self.0.write_all_at(data, place)
    }
}

impl AsRawFd for DeviceFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Where in a device's file an access to a region goes.
fn place(region: &Region, at: u64, len: usize) -> io::Result<u64> {
    let end = at.checked_add(len as u64);
    end.filter(|end| *end <= region.size)
        .and_then(|_| region.offset.checked_add(at))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn fds(events: &[RawFd]) -> Vec<u8> {
    events.iter().flat_map(|fd| fd.to_ne_bytes()).collect()
}

/// A `struct vfio_region_info` with its capabilities: argsz, flags, index, cap_offset, size, offset.
fn region(bytes: &[u8]) -> Region {
    let flags = get(bytes, 4).unwrap_or(0);
    let (size, offset) = (long(bytes, 16).unwrap_or(0), long(bytes, 24).unwrap_or(0));
    let mut mappable = Vec::new();
    if flags & sys::VFIO_REGION_INFO_FLAG_MMAP != 0 {
        mappable = vec![(0, size)];
    }
    let has = flags & sys::VFIO_REGION_INFO_FLAG_CAPS != 0;
    let mut at = get(bytes, 12).filter(|_| has).unwrap_or(0) as usize;
    // Each is behind the last: a list that leads back would not end.
    let mut last = 0;
    while at > last {
        last = at;
        // id and version, next.
        let id = get(bytes, at).unwrap_or(0) & 0xffff;
        if id == sys::VFIO_REGION_INFO_CAP_SPARSE_MMAP && !mappable.is_empty() {
            let count = get(bytes, at + 8).unwrap_or(0) as usize;
            let area = |number: usize| {
                let area = at + 16 + 16 * number;
                Some((long(bytes, area)?, long(bytes, area + 8)?))
            };
            mappable = (0..count).map_while(area).collect();
        }
        at = get(bytes, at + 4).unwrap_or(0) as usize;
    }
    Region {
        size,
        offset,
        mappable,
    }
}

fn get(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*word))
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    let places = bytes.iter_mut().skip(at);
    places
        .zip(value.to_ne_bytes())
        .for_each(|(place, byte)| *place = byte);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, cap_offset: u32, size: u64, rest: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [32, flags, 0, cap_offset]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        bytes.extend(size.to_ne_bytes());
        bytes.extend((1u64 << 40).to_ne_bytes());
        bytes.extend(rest.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn all_of_a_region_can_be_mapped_or_nothing_or_parts() {
        assert_eq!(region(&info(3, 0, 4096, &[])).mappable, []);
        assert_eq!(region(&info(7, 0, 4096, &[])).mappable, [(0, 4096)]);
        let parts = [1 | 1 << 16, 0, 2, 0, 0, 0, 0x1000, 0, 0x3000, 0, 0x1000, 0];
        let found = region(&info(15, 32, 0x4000, &parts));
        assert_eq!(found.mappable, [(0, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(found.offset, 1 << 40);
    }

    #[test]
    fn a_list_that_leads_back_or_out_ends() {
        for next in [32, 31, 0xffff_ffff] {
            region(&info(15, 32, 0x4000, &[3, next]));
        }
        let short = [1, 0, u32::MAX, 0, 0, 0, 0x1000];
        assert_eq!(region(&info(15, 32, 0x4000, &short)).mappable, []);
        region(&info(15, u32::MAX, 1, &[]));
        region(&[]);
    }

    #[test]
    fn an_access_out_of_a_region_goes_nowhere() {
        let found = region(&info(3, 0, 0x100, &[]));
        assert_eq!(place(&found, 0xff, 1).unwrap(), (1 << 40) + 0xff);
        for (at, len) in [(0xff, 2), (0x100, 1), (u64::MAX, 1), (u64::MAX, 2)] {
            assert!(place(&found, at, len).is_err());
        }
    }
}
