//! A region of guest memory: RAM that is all there, or memory of which the guest has a part at a time ([`Blocks`]).

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use vm_memory::bitmap::BS;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestRegionMmap, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::place::Place;
use super::pluggable::Blocks;

/// The guest's memory.
pub type GuestMemory = GuestRegionCollection<Region>;

/// A region of it.
#[derive(Debug)]
pub struct Region {
    mapping: GuestRegionMmap<()>,
    /// What the mapping is of, unless that owns it itself: it must last as long.
    _place: Option<Place>,
    blocks: Option<Blocks>,
    /// Whether its pages must stay where they are.
    pinned: RwLock<bool>,
}

impl Region {
    /// RAM in a mapping that owns itself.
    pub(super) fn ram(mapping: GuestRegionMmap<()>) -> Self {
        Region {
            mapping,
            _place: None,
            blocks: None,
            pinned: RwLock::new(false),
        }
    }

    /// RAM at this address, of this size, in a file if there is one.
    pub(super) fn map(
        start: GuestAddress,
        len: usize,
        file: Option<FileOffset>,
    ) -> Result<Self, FromRangesError> {
        let place = Place::map(len, file.as_ref()).map_err(MmapRegionError::Mmap)?;
        let mut mapping = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(match file {
                Some(_) => libc::MAP_SHARED,
                None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            });
        if let Some(file) = file {
            mapping = mapping.with_file_offset(file);
        }
        // SAFETY: these addresses are mapped so, and stay as long as the region does.
        let mapping = unsafe { mapping.with_raw_mmap_pointer(place.start()) }.build()?;
        let mapping = GuestRegionMmap::new(mapping, start);
        Ok(Region {
            _place: Some(place),
            ..Self::ram(mapping.ok_or(FromRangesError::InvalidGuestRegion)?)
        })
    }

    /// The same as memory that comes and goes by `blocks`, which are as long.
    pub(super) fn with(self, blocks: Blocks) -> Self {
        Region {
            blocks: Some(blocks),
            ..self
        }
    }

    /// What of it the guest has; `None` for RAM, which it has all of.
    pub fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// Says whether its pages must stay where they are. Those who are about to take some have done so when this returns.
    pub(super) fn pin(&self, pinned: bool) {
        *self.pinned.write().unwrap_or_else(PoisonError::into_inner) = pinned;
    }

    /// Whether its pages must stay where they are, which does not change while this is held.
    pub(super) fn pinned(&self) -> RwLockReadGuard<'_, bool> {
        self.pinned.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it as this process has it mapped, whether the guest has it or not.
    pub fn mapping(&self) -> &GuestRegionMmap<()> {
        &self.mapping
    }

    /// Where others find it than this process's own code: KVM, and vhost. Of memory that comes and goes, only what the guest has can be
    /// touched there.
    pub fn address_for_kernel(&self) -> u64 {
        match &self.blocks {
            Some(blocks) => blocks.view().address(),
            None => self.mapping.as_ptr() as u64,
        }
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.mapping.get_host_address(addr)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.mapping.file_offset()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        match &self.blocks {
            Some(blocks) if !blocks.has(offset.0, count as u64) => {
                Err(GuestMemoryError::InvalidBackendAddress)
            }
            _ => self.mapping.get_slice(offset, count),
        }
    }
}

impl GuestMemoryRegionBytes for Region {}

/// RAM in anonymous memory, at these addresses and of these sizes.
///
/// # Errors
/// When the host does not give the memory, or they overlap.
pub fn anonymous(ranges: &[(GuestAddress, usize)]) -> Result<GuestMemory, FromRangesError> {
    let ranges = ranges.iter().map(|&(start, size)| (start, size, None));
    backed(ranges)
}

/// RAM at these addresses, of these sizes, in files where there is one.
///
/// # Errors
/// When it cannot be mapped, or overlaps.
pub fn backed(
    ranges: impl IntoIterator<Item = (GuestAddress, usize, Option<FileOffset>)>,
) -> Result<GuestMemory, FromRangesError> {
    let regions = ranges
        .into_iter()
        .map(|(start, size, file)| Ok(Arc::new(Region::map(start, size, file)?)))
        .collect::<Result<Vec<_>, FromRangesError>>()?;
    Ok(GuestMemory::from_arc_regions(regions)?)
}
