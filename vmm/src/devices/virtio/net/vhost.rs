//! vhost-net: the host's kernel carries the packets of a pair of queues between guest memory and the tap, without a thread of ours.
//!
//! It follows the same rings, is kicked and interrupts by the same events, and checks what the guest writes. Of what we do there are
//! left the control queue, and to look out: for a guest that breaks the rules, and for the end of the tap.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as Handle;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryRegion, Permissions};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::config::F_MRG_RXBUF;
use super::counters::Counters;
use super::link::Reporter;
use super::tap::Port;
use crate::devices::virtio::queue;
use crate::devices::virtio::worker::{Events, Wake};
use crate::devices::virtio::{
    ActiveQueue, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1, Fault, GuestMemory,
    StartError,
};

/// What it must know of what a driver may take; all else is between the driver and the tap.
const FEATURES: u64 = F_VERSION_1 | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX | F_MRG_RXBUF;
/// How long nobody looks at a tap that was seen to live.
const REST_MS: i32 = 250;

/// Whether the kernel carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vhost {
    /// Where the host has it.
    Auto,
    /// It must.
    On,
    /// It does not.
    Off,
}

/// Whether this host has a vhost-net that will do.
///
/// # Errors
/// Why not.
pub fn probe() -> io::Result<()> {
    let handle = Handle::new(Arc::new(GuestMemory::new())).map_err(reason)?;
    let offered = handle.get_features().map_err(reason)?;
    if offered & FEATURES != FEATURES {
        return Err(io::Error::other("it is too old"));
    }
    Ok(())
}

/// What the system said, without what the crate says around it.
fn reason(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error)
        | vhost::Error::IoctlError(error)
        | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// The kernel at work on one pair of queues, with copies of their events. When this is dropped it has ended, and touches neither
/// queues nor guest memory.
pub struct Carrier(Handle<Arc<GuestMemory>>);

impl Carrier {
    /// Lets the kernel carry packets between `tap` and the queues, receive queue first, which nobody else must use then. It signals
    /// `broken` when the guest breaks the rules.
    ///
    /// # Errors
    /// What the kernel did not take; it then does nothing with them.
    pub fn start(
        memory: &Arc<GuestMemory>,
        features: u64,
        tap: &File,
        queues: [&ActiveQueue; 2],
        broken: &EventFd,
    ) -> Result<Self, StartError> {
        let refused = |what| {
            move |error| StartError::System {
                what,
                source: reason(error),
            }
        };
        let handle = Handle::new(memory.clone()).map_err(refused("open vhost-net"))?;
        handle.set_owner().map_err(refused("own a vhost-net"))?;
        handle
            .set_features(features & FEATURES)
            .map_err(refused("give vhost-net the features"))?;
        handle
            .set_mem_table(&regions(memory))
            .map_err(refused("give vhost-net the guest's memory"))?;
        // From here on, whatever fails ends what has begun.
        let carrier = Carrier(handle);
        for (index, queue) in queues.iter().enumerate() {
            carrier
                .take(index, memory, queue, broken)
                .map_err(refused("give vhost-net a queue"))?;
        }
        for (index, queue) in queues.iter().enumerate() {
            carrier
                .0
                .set_backend(index, Some(tap))
                .map_err(refused("give vhost-net the tap"))?;
            // What was made available before may have been announced to nobody. It fails only where a kick is pending.
            let _ = queue.kick.write(1);
        }
        Ok(carrier)
    }

    fn take(
        &self,
        index: usize,
        memory: &GuestMemory,
        active: &ActiveQueue,
        broken: &EventFd,
    ) -> Result<(), vhost::Error> {
        let layout = active.queue.layout();
        let size = u64::from(layout.size);
        // It is given a host address for each ring, and goes on from there.
        for (ring, len) in [
            (layout.descriptors, 16 * size),
            (layout.driver, 6 + 2 * size),
            (layout.device, 6 + 8 * size),
        ] {
            if !is_one_piece(memory, ring, len) {
                return Err(vhost::Error::InvalidQueue);
            }
        }
        let handle = &self.0;
        handle.set_vring_num(index, layout.size)?;
        handle.set_vring_base(index, 0)?;
        handle.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: layout.size,
                queue_size: layout.size,
                flags: 0,
                desc_table_addr: layout.descriptors.0,
                used_ring_addr: layout.device.0,
                avail_ring_addr: layout.driver.0,
                log_addr: None,
            },
        )?;
        handle.set_vring_err(index, broken)?;
        // Without an interrupt it signals nothing.
        if let Some(interrupt) = active.interrupt.fd() {
            handle.set_vring_call(index, interrupt)?;
        }
        handle.set_vring_kick(index, &active.kick)
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        for index in 0..2 {
            // The kernel lets go of a queue before it answers. It fails where there was no tap yet, or is none any more.
            if let Err(error) = self.0.set_backend(index, None) {
                log::debug!("vhost-net: while stopping: {error}");
            }
        }
    }
}

fn regions(memory: &GuestMemory) -> Vec<VhostUserMemoryRegionInfo> {
    use vm_memory::GuestMemoryBackend;
    let region = |region: &crate::memory::Region| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.address_for_kernel(),
        // Only for a backend that maps it by itself.
        mmap_offset: 0,
        mmap_handle: -1,
    };
    memory.iter().map(region).collect()
}

/// Whether these bytes follow each other in the host's memory as well.
fn is_one_piece(memory: &GuestMemory, start: GuestAddress, len: u64) -> bool {
    let slices = memory.get_slices(start, len as usize, Permissions::ReadWrite);
    slices.is_ok_and(|mut slices| {
        let first = slices.next();
        first.is_some_and(|slice| slice.is_ok_and(|slice| slice.len() as u64 == len))
    })
}

/// Looks out while the kernel works.
pub struct Watch {
    /// The kernel's work, which ends with the watch.
    pub carriers: Vec<Carrier>,
    /// The transmit queues that it works on.
    pub transmit: Vec<ActiveQueue>,
    /// The guest's RAM.
    pub memory: Arc<GuestMemory>,
    /// The host's side.
    pub port: Arc<dyn Port>,
    /// Where it is told that the host's side is gone.
    pub link: Reporter,
    /// Signalled when the guest breaks the rules.
    pub broken: EventFd,
    /// For what the guest gets wrong.
    pub fault: Fault,
    /// What is thrown away.
    pub counters: Arc<Counters>,
}

/// What ends the kernel's work.
enum End {
    /// The driver has reset the device.
    Stopped,
    /// The tap is gone.
    Gone,
}

/// What ends the device until it is reset.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the guest broke the rules of a queue; the kernel does not say which")]
    Guest,
    #[error("a queue is broken")]
    Queue(#[from] queue::Error),
    #[error("cannot watch the tap")]
    System(#[from] io::Error),
}

const BROKEN: u64 = 0;
const TAP: u64 = 1;
const KICKS: u64 = 2;

impl Watch {
    /// Looks out until it is told to stop; the kernel has ended then.
    pub fn run(mut self, events: &mut Events) {
        let end = self.watch(events);
        self.carriers.clear();
        let ended = match end {
            Ok(End::Stopped) => Ok(()),
            Ok(End::Gone) => self.discard(events),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            self.fault.raise(&failure);
        }
    }

    fn watch(&self, events: &mut Events) -> Result<End, Failure> {
        // A tap that is deleted says so to those who wait for packets, and packets come by the thousand. So this waits for one, and then
        // looks no more for a while.
        let look = EventSet::IN | EventSet::ONE_SHOT;
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let tap = self.port.queues().first().ok_or_else(none)?;
        events.add(&self.broken, EventSet::IN, BROKEN)?;
        events.add(tap, look, TAP)?;
        let mut resting = false;
        loop {
            let wakes = events.wait(if resting { REST_MS } else { -1 });
            if wakes.is_empty() {
                resting = false;
                events.modify(tap, look, TAP)?;
            }
            for wake in wakes {
                match wake {
                    Wake::Stop => return Ok(End::Stopped),
                    // The kernel also blames the guest for what it could not send to a tap that is gone.
                    Wake::Ready(BROKEN, _) if !self.port.is_gone() => return Err(Failure::Guest),
                    Wake::Ready(_, set) if self.port.is_gone() || set.contains(EventSet::ERROR) => {
                        self.link.down();
                        events.remove(tap)?;
                        events.remove(&self.broken)?;
                        return Ok(End::Gone);
                    }
                    Wake::Ready(..) => resting = true,
                }
            }
        }
    }

    /// What the driver sends goes nowhere any more, but it gets its buffers back, also those that the kernel did not give back: a driver
    /// that waits for them would say that the card hangs.
    fn discard(&mut self, events: &mut Events) -> Result<(), Failure> {
        for (token, active) in (KICKS..).zip(&mut self.transmit) {
            active.queue.resume(&self.memory)?;
            events.add(&active.kick, EventSet::IN, token)?;
        }
        loop {
            let mut more = false;
            for active in &mut self.transmit {
                // Before the queue is looked at. It is non-blocking, and has nothing to say but that it happened.
                let _ = active.kick.read();
                more |= active.serve(&self.memory, |_| {
                    self.counters.tx.dropped();
                    Ok::<_, queue::Error>(0)
                })?;
            }
            if events.wait(if more { 0 } else { -1 }).contains(&Wake::Stop) {
                return Ok(());
            }
        }
    }
}
