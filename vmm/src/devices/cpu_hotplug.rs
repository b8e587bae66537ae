//! The registers by which a guest learns that vCPUs have come or are to go, and lets go of them. The guest's side is AML of ours
//! (`arch::x86_64::acpi::cpu_hotplug`); the layout is nobody else's business.
//!
//! ```text
//!  0  PRESENT  read: a bit for each vCPU that there is, 32 bytes
//! 32  NEXT     read: what has happened and was not read yet, or 0: the vCPU in the low byte, and a notify value above it
//! 36  EJECT    write: the vCPU that the guest has let go of
//! ```
//!
//! PRESENT is read by bytes, the others by words of four; anything else reads as zero and writes nothing.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus;

/// See above.
pub const PRESENT: u16 = 0;
/// Its length in bytes.
pub const PRESENT_SIZE: u16 = 32;
/// See above.
pub const NEXT: u16 = 32;
/// See above.
pub const EJECT: u16 = 36;
/// The registers' length in bytes.
pub const REGISTERS_SIZE: u16 = 40;

/// Notify value: look whether a processor is there (ACPI 6.5, 5.6.6).
const DEVICE_CHECK: u32 = 1;
/// Notify value: let go of the processor.
const EJECT_REQUEST: u32 = 3;

/// The vCPU that a VM cannot be without.
const FIRST: u8 = 0;

/// Hears of a vCPU that the guest has let go of. It is called by a vCPU, and must not keep it.
pub type OnEject = Box<dyn Fn(u8) + Send + Sync>;

/// The registers.
pub struct CpuHotplug {
    state: Mutex<State>,
    /// The interrupt that has the guest read them.
    event: EventFd,
    on_eject: OnEject,
}

#[derive(Debug)]
struct State {
    present: BTreeSet<u8>,
    come: BTreeSet<u8>,
    go: BTreeSet<u8>,
}

impl CpuHotplug {
    /// For a guest that has the first `count` vCPUs; `event` is the interrupt.
    pub fn new(count: u8, event: EventFd, on_eject: OnEject) -> Self {
        CpuHotplug {
            state: Mutex::new(State {
                present: (0..count).collect(),
                come: BTreeSet::new(),
                go: BTreeSet::new(),
            }),
            event,
            on_eject,
        }
    }

    /// How many vCPUs the guest has.
    pub fn count(&self) -> usize {
        self.lock().present.len()
    }

    /// Whether the guest has vCPU `id`.
    pub fn has(&self, id: u8) -> bool {
        self.lock().present.contains(&id)
    }

    /// The guest has vCPU `id` from now on, and is told. If it has it already, it is asked no more to let go of it.
    pub fn come(&self, id: u8) {
        let mut state = self.lock();
        state.go.remove(&id);
        if state.present.insert(id) {
            state.come.insert(id);
            self.interrupt();
        }
    }

    /// Asks the guest to let go of vCPU `id`. It may do so at any later time, or never.
    pub fn ask_for(&self, id: u8) {
        let mut state = self.lock();
        state.come.remove(&id);
        state.go.insert(id);
        self.interrupt();
    }

    fn interrupt(&self) {
        // It fails only when the eventfd is full, and then an interrupt is pending anyway.
        let _ = self.event.write(1);
    }

    fn present(&self, byte: u64) -> u8 {
        let state = self.lock();
        let has =
            |bit: u64| u8::try_from(byte * 8 + bit).is_ok_and(|id| state.present.contains(&id));
        (0..8)
            .filter(|bit| has(*bit))
            .fold(0, |byte, bit| byte | 1 << bit)
    }

    fn next(&self) -> u32 {
        let mut state = self.lock();
        let come = state.come.pop_first().map(|id| (id, DEVICE_CHECK));
        let next = come.or_else(|| state.go.pop_first().map(|id| (id, EJECT_REQUEST)));
        next.map_or(0, |(id, notify)| notify << 8 | u32::from(id))
    }

    fn eject(&self, id: u32) {
        let Ok(id) = u8::try_from(id) else { return };
        let ejected = id != FIRST && self.lock().present.remove(&id);
        if ejected {
            (self.on_eject)(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change of it is ever left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl bus::Device for CpuHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data
            && offset < u64::from(PRESENT_SIZE)
        {
            *byte = self.present(offset);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset == u64::from(NEXT)
        {
            *word = self.next().to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(EJECT), Ok(word)) = (u16::try_from(offset), data.try_into()) {
            self.eject(u32::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::Device as _;

    struct Bench {
        registers: CpuHotplug,
        event: EventFd,
        ejected: Arc<Mutex<Vec<u8>>>,
    }

    impl Bench {
        fn new(count: u8) -> Self {
            let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let ejected: Arc<Mutex<Vec<_>>> = Arc::default();
            let heard = ejected.clone();
            let on_eject: OnEject = Box::new(move |id| heard.lock().unwrap().push(id));
            Bench {
                registers: CpuHotplug::new(count, event.try_clone().unwrap(), on_eject),
                event,
                ejected,
            }
        }

        fn present(&self) -> Vec<u8> {
            let byte = |offset: u16| {
                let mut byte = [0xff];
                self.registers.read(offset.into(), &mut byte);
                byte[0]
            };
            (0..PRESENT_SIZE).map(byte).collect()
        }

        fn next(&self) -> u32 {
            let mut word = [0xff; 4];
            self.registers.read(NEXT.into(), &mut word);
            u32::from_le_bytes(word)
        }

        fn eject(&self, id: u32) {
            self.registers.write(EJECT.into(), &id.to_le_bytes());
        }
    }

    #[test]
    fn what_comes_and_goes_is_told_once() {
        let bench = Bench::new(9);
        let mut present = vec![0xff, 0x01];
        present.resize(32, 0);
        assert_eq!(bench.present(), present);
        bench.registers.come(254);
        bench.registers.come(9);
        bench.registers.ask_for(8);
        assert_eq!(bench.event.read().unwrap(), 3);
        assert_eq!(bench.next(), 0x109);
        assert_eq!(bench.next(), 0x1fe);
        assert_eq!(bench.next(), 0x308);
        assert_eq!(bench.next(), 0);
        assert_eq!(bench.registers.count(), 11);
        assert_eq!(bench.present()[31], 0x40);
        bench.eject(8);
        assert_eq!(*bench.ejected.lock().unwrap(), [8]);
        assert_eq!(bench.present()[1], 0x02);
        bench.registers.come(8);
        assert_eq!(bench.next(), 0x108, "it can come again");
    }

    #[test]
    fn one_that_may_stay_after_all_is_asked_for_no_more() {
        let bench = Bench::new(2);
        bench.registers.ask_for(1);
        bench.registers.come(1);
        assert_eq!(bench.next(), 0);
        bench.registers.come(2);
        bench.registers.ask_for(2);
        assert_eq!(bench.next(), 0x302, "the guest need not hear that it came");
    }

    #[test]
    fn a_guest_ejects_what_is_there_and_nothing_else() {
        let bench = Bench::new(2);
        for (offset, data) in [
            (EJECT.into(), &[1][..]),
            (EJECT.into(), &[1, 0, 0, 0, 0, 0, 0, 0]),
            (NEXT.into(), &[1, 0, 0, 0]),
            (PRESENT.into(), &[0; 4]),
            (u64::MAX, &[1, 0, 0, 0]),
        ] {
            bench.registers.write(offset, data);
            bench.registers.read(offset, &mut [0; 3]);
        }
        for id in [0, 2, 255, 256, 257, u32::MAX] {
            bench.eject(id);
        }
        assert_eq!(bench.registers.count(), 2);
        bench.eject(1);
        bench.eject(1);
        assert_eq!(*bench.ejected.lock().unwrap(), [1]);
        assert!(bench.registers.has(0) && !bench.registers.has(1));
    }
}
