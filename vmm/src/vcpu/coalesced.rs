//! Port writes that nobody has to hear of at once: KVM keeps them in a ring, without leaving the guest's processor to the VMM for each (coalesced PIO; KVM's
//! API, 4.116 and `KVM_CAP_COALESCED_PIO`).
//!
//! The address port of PCI's configuration space is such a one: what is written there means nothing before the data port is used. A guest that looks
//! for its devices uses the two in turn, six hundred times and more, and leaves for the VMM half as often so.
//!
//! KVM has one ring for all vCPUs of a VM. What is in it is delivered before any other access to a port is ([`Coalesced::deliver`]), by whichever vCPU makes
//! one; one whose own write is being delivered by another waits for that.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio as Entry, kvm_coalesced_mmio_ring as Ring,
};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::bus::Bus;

/// A page is 4 KiB on x86.
const PAGE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// How many writes fit (`KVM_COALESCED_MMIO_MAX`). While they do not, each is an exit.
const ENTRIES: u32 = ((PAGE.get() - size_of::<Ring>()) / size_of::<Entry>()) as u32;

/// The ring of a VM.
#[derive(Debug)]
pub struct Coalesced {
    /// KVM's page, which it shares with us: it writes entries and then `last`, we read entries and then write `first`.
    page: NonNull<Ring>,
    /// Whoever delivers.
    delivering: Mutex<()>,
}

// SAFETY: the page is shared with KVM by atomic operations, and entries are read by one thread at a time.
unsafe impl Send for Coalesced {}
// SAFETY: as above.
unsafe impl Sync for Coalesced {}

impl Coalesced {
    /// Has KVM keep what is written to the four ports from `port` on. `vcpu` is any of the VM's. A KVM of before Linux 4.20 knows no ports here: each write is an
    /// exit there, as without this.
    ///
    /// # Errors
    /// When KVM refuses, or there is no room for its page.
    pub fn writes_to(port: u16, vm: &VmFd, vcpu: &VcpuFd) -> io::Result<Self> {
        const PORTS: u32 = 4;
        let offset = PAGE.get() * KVM_COALESCED_MMIO_PAGE_OFFSET as usize;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the descriptor is open as long as the vCPU is.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let flags = MapFlags::MAP_SHARED;
        // SAFETY: a new mapping, which is nobody's but this value's.
        let page = unsafe { mmap(None, PAGE, protection, flags, vcpu, offset as libc::off_t) }?;
        let ring = Coalesced {
            page: page.cast(),
            delivering: Mutex::new(()),
        };
        vm.register_coalesced_mmio(IoEventAddress::Pio(port.into()), PORTS)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(ring)
    }

    /// Delivers what has been written.
    pub fn deliver(&self, ports: &Bus) {
        if self.first().load(Ordering::Acquire) == self.last().load(Ordering::Acquire) {
            return;
        }
        let _alone = self
            .delivering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut first = self.first().load(Ordering::Relaxed);
        // What comes from now on is left to others: a vCPU that writes and writes must not keep this one here.
        let last = self.last().load(Ordering::Acquire);
        while first != last {
            let Some(entry) = self.entry(first) else {
                return;
            };
            let data = entry.data.get(..entry.len as usize).unwrap_or_default();
            ports.write(entry.phys_addr, data);
            // Not before it has been delivered: who finds the ring empty goes on.
            first = (first + 1) % ENTRIES;
            self.first().store(first, Ordering::Release);
        }
    }

    /// The entry with a number; `None` for a number that KVM does not use.
    fn entry(&self, number: u32) -> Option<Entry> {
        if number >= ENTRIES {
            return None;
        }
        // SAFETY: it lies in the page, behind the ring's head, and KVM does not write to it before `first` has passed it.
        Some(unsafe {
            let entries = self.page.as_ptr().add(1).cast::<Entry>();
            entries.add(number as usize).read_volatile()
        })
    }

    fn first(&self) -> &AtomicU32 {
        // SAFETY: the page has this field, aligned, as long as this value lives; all access it atomically.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).first) }
    }

    fn last(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).last) }
    }
}

impl Drop for Coalesced {
    fn drop(&mut self) {
        // SAFETY: it was mapped here, and nobody refers to it any more.
        let unmapped = unsafe { munmap(self.page.cast(), PAGE.get()) };
        if let Err(error) = unmapped {
            log::warn!("a page of KVM's stays mapped: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::Device;

    /// A ring that nobody but its test writes to.
    fn ring() -> Coalesced {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which is nobody's but the ring's.
        let page =
            unsafe { nix::sys::mman::mmap_anonymous(None, PAGE, protection, MapFlags::MAP_SHARED) };
        Coalesced {
            page: page.unwrap().cast(),
            delivering: Mutex::new(()),
        }
    }

    /// Puts a write into it as KVM does.
    fn put(ring: &Coalesced, port: u64, data: &[u8]) {
        let at = ring.last().load(Ordering::Relaxed);
        let mut entry = Entry {
            phys_addr: port,
            len: data.len() as u32,
            ..Entry::default()
        };
        for (to, from) in entry.data.iter_mut().zip(data) {
            *to = *from;
        }
        // SAFETY: as the ring's own.
        unsafe {
            let entries = ring.page.as_ptr().add(1).cast::<Entry>();
            entries.add(at as usize).write_volatile(entry);
        }
        ring.last().store((at + 1) % ENTRIES, Ordering::Release);
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Heard {
        fn read(&self, _: u64, _: &mut [u8]) {}

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn ports() -> (Bus, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        let mut ports = Bus::new();
        ports.insert(0xcf8, 8, heard.clone()).unwrap();
        (ports, heard)
    }

    #[test]
    fn as_many_entries_fit_as_kvm_has() {
        // Linux: (PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio), 8 and 24 bytes.
        assert_eq!(ENTRIES, 170);
    }

    #[test]
    fn writes_are_delivered_once_in_their_order_and_round_the_end() {
        let (ring, (ports, heard)) = (ring(), ports());
        ring.deliver(&ports);
        assert!(heard.0.lock().unwrap().is_empty());
        for round in 0..ENTRIES {
            put(&ring, 0xcf8, &round.to_le_bytes());
            put(&ring, 0xcfb, &[1]);
            ring.deliver(&ports);
            ring.deliver(&ports);
            let heard = std::mem::take(&mut *heard.0.lock().unwrap());
            let expected = [(0, round.to_le_bytes().to_vec()), (3, vec![1])];
            assert_eq!(heard, expected);
        }
    }

    #[test]
    fn what_kvm_never_writes_does_no_harm() {
        let (ring, (ports, heard)) = (ring(), ports());
        put(&ring, 0xcf8, &[0; 8]);
        // SAFETY: as the ring's own.
        unsafe {
            let entries = ring.page.as_ptr().add(1).cast::<Entry>();
            (*entries).len = u32::MAX;
        }
        ring.deliver(&ports);
        ring.first().store(ENTRIES, Ordering::Relaxed);
        ring.deliver(&ports);
        let heard = heard.0.lock().unwrap();
        assert!(heard.iter().all(|(_, data)| data.is_empty()), "{heard:?}");
    }
}
