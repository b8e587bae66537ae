//! The parts of a device's BARs that the guest reaches without leaving it: mapped into this process, and given to KVM as memory where the
//! guest has its BAR. All other accesses are read from and written to the device's file: what VFIO does not let be mapped, the pages with
//! the table of MSI-X, which is emulated, and everything else if KVM does not take the memory.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::device::Device;
use crate::memory::slots::Slots;
use crate::pci::{Bar, BarIndex};

/// The host's pages, which are what can be mapped.
const PAGE: u64 = 4096;

/// What is mapped of a device.
pub struct Bars {
    vm: Arc<VmFd>,
    slots: Arc<Slots>,
    areas: Vec<Area>,
}

/// A part of a BAR.
struct Area {
    bar: BarIndex,
    offset: u64,
    mapping: Mapping,
    /// The number by which KVM knows it, and where the guest has it.
    placed: Option<(u32, u64)>,
}

/// A part of a device's file, mapped. No code here reads or writes through it: it is for KVM.
struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it is a range of addresses that nobody here reads or writes through.
unsafe impl Send for Mapping {}

impl Bars {
    /// Maps what can be mapped of `device`, but for these parts of its BARs: where they begin, and their sizes.
    pub fn map(
        device: &Device,
        bars: &[Bar],
        holes: &[(BarIndex, u64, u64)],
        vm: Arc<VmFd>,
        slots: Arc<Slots>,
    ) -> Self {
        let mut areas = Vec::new();
        for bar in bars.iter().filter(|bar| bar.index != BarIndex::ROM) {
            let region = device.region(bar.index);
            let holes: Vec<_> = holes
                .iter()
                .filter(|(of, _, _)| *of == bar.index)
                .map(|(_, start, len)| (*start, start.saturating_add(*len)))
                .collect();
            for (offset, len) in without(&region.mappable, &holes, region.size) {
                let file_offset = region.offset.saturating_add(offset);
                match Mapping::new(device, file_offset, len) {
                    Ok(mapping) => areas.push(Area {
                        bar: bar.index,
                        offset,
                        mapping,
                        placed: None,
                    }),
                    Err(error) => log::warn!(
                        "{}: BAR {} cannot be mapped, and is slow: {error}",
                        device.address(),
                        bar.index.get()
                    ),
                }
            }
        }
        Bars { vm, slots, areas }
    }

    /// How many bytes are mapped.
    pub fn mapped(&self) -> u64 {
        self.areas.iter().map(|area| area.mapping.len as u64).sum()
    }

    /// The guest has a BAR there, or nowhere.
    pub fn place(&mut self, bar: BarIndex, at: Option<u64>) {
        let Bars { vm, slots, areas } = self;
        for area in areas.iter_mut().filter(|area| area.bar == bar) {
            let wanted = at.and_then(|at| at.checked_add(area.offset));
            if area.placed.map(|(_, at)| at) == wanted {
                continue;
            }
            area.displace(vm, slots);
            if let Some(at) = wanted {
                area.place(vm, slots, at);
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let Bars { vm, slots, areas } = self;
        areas.iter_mut().for_each(|area| area.displace(vm, slots));
    }
}

impl Area {
    fn place(&mut self, vm: &VmFd, slots: &Slots, at: u64) {
        let slot = slots.take();
        match self.tell(vm, slot, at, self.mapping.len as u64) {
            Ok(()) => self.placed = Some((slot, at)),
            Err(error) => {
                slots.give_back(slot);
                log::warn!("a BAR at {at:#x} is slow: KVM did not take it: {error}");
            }
        }
    }

    fn displace(&mut self, vm: &VmFd, slots: &Slots) {
        let Some((slot, at)) = self.placed.take() else {
            return;
        };
        // Of no size is not there.
        match self.tell(vm, slot, at, 0) {
            Ok(()) => slots.give_back(slot),
            Err(error) => log::error!("KVM keeps a BAR at {at:#x}: {error}"),
        }
    }

    fn tell(&self, vm: &VmFd, slot: u32, at: u64, size: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: at,
            memory_size: size,
            userspace_addr: self.mapping.start.as_ptr() as u64,
        };
        // SAFETY: the range is mapped for as long as this is, which takes it back before it ends.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Mapping {
    fn new(device: &Device, offset: u64, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a mapping where the kernel wants it harms nobody, and the file is open.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                device.file().as_raw_fd(),
                offset,
            )
        };
        let mapped = if mapped == libc::MAP_FAILED {
            None
        } else {
            NonNull::new(mapped)
        };
        let start = mapped.ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and KVM has let go of it.
        unsafe { libc::munmap(self.start.as_ptr(), self.len) };
    }
}

/// The whole pages of `areas`, which begin at these offsets and have these sizes, that none of `holes` touches, as (offset, size). A hole
/// is from its first to behind its last byte.
fn without(areas: &[(u64, u64)], holes: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut holes: Vec<_> = holes
        .iter()
        .map(|(start, end)| {
            let end = end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
            (start / PAGE * PAGE, end)
        })
        .collect();
    holes.sort_unstable();
    for (start, len) in areas {
        let end = start.saturating_add(*len).min(size) / PAGE * PAGE;
        let mut at = start.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        for (hole, hole_end) in &holes {
            if *hole > at && at < end {
                found.push((at, (*hole).min(end) - at));
            }
            at = at.max(*hole_end);
        }
        if at < end {
            found.push((at, end - at));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn whole_pages_around_the_holes_are_mapped() {
        let page = 0x1000;
        for (areas, holes, wanted) in [
            (vec![(0, 0x4000)], vec![], vec![(0, 0x4000)]),
            (
                vec![(0, 0x4000)],
                vec![(0x2000, 0x2410), (0x3000, 0x3008)],
                vec![(0, 0x2000)],
            ),
            (
                vec![(0, 0x4000)],
                vec![(0x1800, 0x1801)],
                vec![(0, 0x1000), (0x2000, 0x2000)],
            ),
            (vec![(0, 0x4000)], vec![(0, 0x4000)], vec![]),
            (vec![(0, 0x4000)], vec![(0, u64::MAX)], vec![]),
            (vec![(0, 0x800)], vec![], vec![]),
            (vec![(0x100, 0x2000)], vec![], vec![(page, page)]),
            (
                vec![(0, page), (0x3000, page)],
                vec![(0x3000, 0x3010)],
                vec![(0, page)],
            ),
            (vec![(u64::MAX - 5, 9)], vec![], vec![]),
            (
                vec![(0, u64::MAX)],
                vec![(0x5000, 0x6000)],
                vec![(0, 0x4000)],
            ),
        ] {
            assert_eq!(
                without(&areas, &holes, 0x4000),
                wanted,
                "{areas:?} {holes:?}"
            );
        }
    }
}
