//! Memory that devices of the host's reach by themselves, through an IOMMU.
//!
//! All of it is pinned: it stays where it is, also what the guest has given back, because a device would go on with the page that was
//! there before. What is plugged later is reached from then on, and what is unplugged is not any more.

use std::fmt;
use std::io;
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::region::{GuestMemory, Region};

/// What decides which memory devices reach.
pub trait Dma: fmt::Debug + Send + Sync {
    /// Lets devices reach `len` bytes of this process at `host`, by the guest's address `at`.
    ///
    /// # Safety
    /// The bytes must stay mapped until they are unmapped here, and nobody may believe them to be unchanging.
    ///
    /// # Errors
    /// What the host says.
    unsafe fn map(&self, at: u64, host: u64, len: u64) -> io::Result<()>;

    /// Takes back what was mapped as these very `len` bytes.
    ///
    /// # Errors
    /// What the host says.
    fn unmap(&self, at: u64, len: u64) -> io::Result<()>;
}

/// Memory that devices do not get to reach.
#[derive(Debug)]
pub struct NotReached {
    /// Where it begins.
    pub start: u64,
    /// Its size.
    pub len: u64,
    /// Why not.
    pub source: io::Error,
}

/// A guest's memory as long as devices reach it.
#[derive(Debug)]
pub struct Reached {
    memory: Arc<GuestMemory>,
    dma: Arc<dyn Dma>,
    /// How many regions they reach.
    count: usize,
}

impl Reached {
    /// Lets devices reach all of it.
    ///
    /// # Errors
    /// When the host does not let all of it be pinned; then they reach none.
    pub fn all(memory: Arc<GuestMemory>, dma: Arc<dyn Dma>) -> Result<Self, NotReached> {
        let mut reached = Reached {
            memory: memory.clone(),
            dma: dma.clone(),
            count: 0,
        };
        for region in memory.iter() {
            let (start, len) = (region.start_addr().raw_value(), region.len());
            reach(region, &dma).map_err(|source| NotReached { start, len, source })?;
            reached.count += 1;
        }
        Ok(reached)
    }

    /// How many bytes are pinned.
    pub fn bytes(&self) -> u64 {
        let regions = self.memory.iter();
        let sizes = regions.map(|region| region.blocks().map_or(region.len(), |b| b.plugged()));
        sizes.sum()
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        for region in self.memory.iter().take(self.count) {
            if let Err(error) = let_go(region, &self.dma) {
                log::error!("the IOMMU keeps the guest's memory: {error}");
            }
        }
    }
}

fn reach(region: &Region, dma: &Arc<dyn Dma>) -> io::Result<()> {
    let (at, host) = (
        region.start_addr().raw_value(),
        region.mapping().as_ptr() as u64,
    );
    if let Some(blocks) = region.blocks() {
        return blocks.connect(at, host, dma.clone());
    }
    region.pin(true);
    // SAFETY: the region is mapped for as long as the guest's memory is there, which whoever maps it here keeps until it is unmapped.
    // It is guest memory, which nobody believes to be unchanging.
    let mapped = unsafe { dma.map(at, host, region.len()) };
    if mapped.is_err() {
        region.pin(false);
    }
    mapped
}

fn let_go(region: &Region, dma: &Arc<dyn Dma>) -> io::Result<()> {
    if let Some(blocks) = region.blocks() {
        return blocks.disconnect();
    }
    dma.unmap(region.start_addr().raw_value(), region.len())?;
    region.pin(false);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Sharing, give_back, map, pluggable, with};

    /// An IOMMU that takes note, and takes no more than a number of mappings.
    #[derive(Debug)]
    pub struct Notes {
        pub mapped: Mutex<BTreeMap<u64, u64>>,
        most: usize,
    }

    impl Notes {
        pub fn new(most: usize) -> Arc<Self> {
            Arc::new(Notes {
                mapped: Mutex::default(),
                most,
            })
        }

        pub fn list(&self) -> Vec<(u64, u64)> {
            let mapped = self.mapped.lock().unwrap();
            mapped.iter().map(|(at, len)| (*at, *len)).collect()
        }
    }

    impl Dma for Notes {
        unsafe fn map(&self, at: u64, _: u64, len: u64) -> io::Result<()> {
            let mut mapped = self.mapped.lock().unwrap();
            if mapped.len() == self.most {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            assert_eq!(mapped.insert(at, len), None, "mapped twice");
            Ok(())
        }

        fn unmap(&self, at: u64, len: u64) -> io::Result<()> {
            let removed = self.mapped.lock().unwrap().remove(&at);
            assert_eq!(removed, Some(len), "as it was mapped");
            Ok(())
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_that_devices_reach_is_not_given_back_until_they_are_gone() {
        for sharing in [Sharing::Private, Sharing::Shared] {
            let memory = map("3100M".parse().unwrap(), sharing).unwrap();
            let notes = Notes::new(2);
            let reached = Reached::all(memory.clone(), notes.clone()).unwrap();
            assert_eq!(reached.bytes(), 3100 * MIB);
            assert_eq!(notes.list(), [(0, 3 << 30), (4 << 30, 28 * MIB)]);
            memory.write_obj(7u8, GuestAddress(MIB)).unwrap();
            let given = |memory: &GuestMemory| give_back(memory, GuestAddress(MIB), MIB).unwrap();
            assert_eq!(given(&memory), 0);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 7);
            drop(reached);
            assert!(notes.list().is_empty());
            assert_eq!(given(&memory), MIB);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 0);
        }
    }

    #[test]
    fn all_of_it_is_reached_or_nothing() {
        let memory = map("3100M".parse().unwrap(), Sharing::Private).unwrap();
        let notes = Notes::new(1);
        let refused = Reached::all(memory.clone(), notes.clone()).unwrap_err();
        assert_eq!(refused.start, 4 << 30);
        assert!(notes.list().is_empty());
        assert_eq!(give_back(&memory, GuestAddress(0), MIB).unwrap(), MIB);
    }

    #[test]
    fn what_comes_and_goes_is_reached_while_it_is_there() {
        let start = GuestAddress(4 << 30);
        let region = Arc::new(pluggable::region(start, 8 * MIB).unwrap());
        let memory = map("32M".parse().unwrap(), Sharing::Private).unwrap();
        let memory = Arc::new(with(&memory, &region).unwrap());
        let blocks = region.blocks().unwrap();
        blocks.plug(2 * MIB, 1).unwrap();
        let notes = Notes::new(4);
        let reached = Reached::all(memory.clone(), notes.clone()).unwrap();
        let at = |offset: u64| (start.0 + offset * MIB, 2 * MIB);
        assert_eq!(notes.list()[1..], [at(2)]);
        assert_eq!(reached.bytes(), 34 * MIB);
        blocks.plug(4 * MIB, 2).unwrap();
        assert_eq!(notes.list()[1..], [at(2), at(4), at(6)]);
        assert!(blocks.plug(0, 1).is_err(), "the IOMMU takes no more");
        assert_eq!(blocks.plugged(), 6 * MIB);
        blocks.unplug(2 * MIB, 2).unwrap();
        assert_eq!(notes.list()[1..], [at(6)]);
        blocks.plug(0, 1).unwrap();
        blocks.unplug_all().unwrap();
        assert_eq!(notes.list().len(), 1);
        blocks.plug(0, 2).unwrap();
        drop(reached);
        assert!(notes.list().is_empty());
        blocks.plug(4 * MIB, 1).unwrap();
        assert!(notes.list().is_empty());
    }
}
