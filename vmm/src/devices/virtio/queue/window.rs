//! Guest memory as whoever goes through a list of buffers reaches it.

use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, VolatileSlice};

use super::Error;
use crate::devices::virtio::GuestMemory;
use crate::memory::Region;

/// Finds buffers. Most lie in the region in which the last one lay: it is looked there first, for a request of 1 MiB may have 256 of them.
pub(super) struct Window<'m> {
    memory: &'m GuestMemory,
    last: Option<&'m Region>,
}

impl<'m> Window<'m> {
    /// One through which nobody has looked yet.
    pub fn on(memory: &'m GuestMemory) -> Self {
        Window { memory, last: None }
    }

    /// All of the memory.
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// Whether these bytes are in RAM.
    pub fn has(&mut self, addr: GuestAddress, len: usize) -> bool {
        self.whole(addr, len).is_some() || self.memory.check_range(addr, len)
    }

    /// Adds the host's view of these bytes to `found`.
    ///
    /// # Errors
    /// When they cannot be reached.
    pub fn view(
        &mut self,
        addr: GuestAddress,
        len: usize,
        found: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<(), Error> {
        if let Some(slice) = self.whole(addr, len) {
            found.push(slice);
            return Ok(());
        }
        for slice in self.memory.get_slices(addr, len) {
            found.push(slice.map_err(Error::Memory)?);
        }
        Ok(())
    }

    /// The host's view of these bytes, if one region has all of them.
    pub fn whole(&mut self, addr: GuestAddress, len: usize) -> Option<VolatileSlice<'m>> {
        let there = |region: &'m Region| Some((region, region.to_region_addr(addr)?));
        let found = self.last.and_then(there);
        let (region, offset) = found.or_else(|| self.memory.to_region_addr(addr))?;
        self.last = Some(region);
        region.get_slice(offset, len).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::anonymous;

    const FIRST: usize = 0x4000;
    const BEYOND: u64 = 0x10000;

    /// Two regions beside each other, and one behind a hole.
    fn memory() -> GuestMemory {
        let at = GuestAddress;
        anonymous(&[
            (at(0), FIRST),
            (at(FIRST as u64), 0x4000),
            (at(BEYOND), 0x1000),
        ])
        .unwrap()
    }

    #[test]
    fn what_one_region_has_is_one_slice_wherever_was_looked_before() {
        let memory = memory();
        let mut window = Window::on(&memory);
        for addr in [0x100, BEYOND + 0x10, 0x4010, 0x100, BEYOND + 0x10] {
            let addr = GuestAddress(addr);
            let slice = window.whole(addr, 0x20).unwrap();
            let host = memory.get_slices(addr, 0x20).next().unwrap().unwrap();
            assert_eq!(slice.ptr_guard().as_ptr(), host.ptr_guard().as_ptr());
            assert_eq!(slice.len(), 0x20);
        }
    }

    #[test]
    fn what_lies_across_regions_is_as_many_slices() {
        let memory = memory();
        let mut window = Window::on(&memory);
        let addr = GuestAddress(FIRST as u64 - 0x10);
        assert!(window.whole(addr, 0x20).is_none());
        assert!(window.has(addr, 0x20));
        let mut found = Vec::new();
        window.view(addr, 0x20, &mut found).unwrap();
        let lengths: Vec<_> = found.iter().map(VolatileSlice::len).collect();
        assert_eq!(lengths, [0x10, 0x10]);
    }

    #[test]
    fn what_is_not_wholly_in_ram_is_not_there() {
        let memory = memory();
        let mut window = Window::on(&memory);
        for (addr, len) in [
            (0x7ff0, 0x20),
            (0x9000, 1),
            (BEYOND, 0x1001),
            (BEYOND + 0x1000, 1),
            (u64::MAX, 2),
            (0, usize::MAX),
        ] {
            // Once without and once with a region to be looked at first.
            for _ in 0..2 {
                let addr = GuestAddress(addr);
                assert!(window.whole(addr, len).is_none());
                assert!(!window.has(addr, len));
                assert!(window.view(addr, len, &mut Vec::new()).is_err());
                assert!(window.has(GuestAddress(BEYOND), 0x1000));
            }
        }
    }
}
