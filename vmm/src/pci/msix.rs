//! MSI-X (PCI Local Bus 3.0, 6.8.2): a table of messages, each with an eventfd that becomes the message while it is not masked.
//!
//! ```text
//!  masked ──unmask: attach──► attached(message) ──message changed: update──► attached(message)
//!    ▲                           │
//!    └───────mask: detach────────┘
//! ```
//!
//! Masked, the eventfd keeps what its device signals; KVM delivers it when the irqfd is attached. So nothing is lost, and a device
//! never learns of masks. A vector costs KVM nothing before it is first unmasked.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::vectors::Vectors;
use crate::irq::{Msi, MsiMessage};

/// The size of a table entry: address low, address high, data, vector control.
pub const ENTRY_SIZE: usize = 16;
/// The capability's id.
pub const CAPABILITY: u8 = 0x11;
/// What a driver may write of the capability's upper control byte: enable, and the function's mask.
pub const CONTROL_WRITABLE: u8 = 0xc0;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// A function's table.
pub struct Msix {
    vectors: Vectors,
    table: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

/// An entry as the driver wrote it.
#[derive(Clone, Copy)]
struct Entry([u32; 4]);

impl Entry {
    /// The message that is to be sent, unless the driver masks it.
    fn message(self) -> Option<MsiMessage> {
        let [low, high, data, control] = self.0;
        let address = u64::from(high) << 32 | u64::from(low);
        (control & VECTOR_MASKED == 0).then_some(MsiMessage { address, data })
    }

    /// Whether a driver has written a message into it.
    fn is_used(self) -> bool {
        let [low, high, data, _] = self.0;
        (low, high, data) != (0, 0, 0)
    }
}

impl Msix {
    /// `count` vectors, all masked.
    ///
    /// # Errors
    /// When an eventfd cannot be had.
    pub fn new(msi: Arc<dyn Msi>, count: usize) -> std::io::Result<Self> {
        Ok(Msix {
            vectors: Vectors::new(msi, count)?,
            table: vec![Entry([0, 0, 0, VECTOR_MASKED]); count],
            enabled: false,
            masked: false,
        })
    }

    /// The event that is a vector's interrupt.
    pub fn event(&self, vector: u16) -> Option<Arc<EventFd>> {
        self.vectors.event(usize::from(vector)).cloned()
    }

    /// The events of all vectors, in order.
    pub fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.vectors.events()
    }

    /// How many of the first vectors a driver has written messages for: it does so before it lets any of them through.
    pub fn used(&self) -> usize {
        let last = self.table.iter().rposition(|entry| entry.is_used());
        last.map_or(0, |last| last + 1)
    }

    /// The driver wrote the capability's control word.
    pub fn control(&mut self, control: u16) {
        let (enabled, masked) = (control & CONTROL_ENABLE != 0, control & CONTROL_MASK != 0);
        if (self.enabled, self.masked) != (enabled, masked) {
            (self.enabled, self.masked) = (enabled, masked);
            (0..self.table.len()).for_each(|index| self.update(index));
        }
    }

    /// The driver reads the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index);
            *byte = self
                .table
                .get(at / ENTRY_SIZE)
                .and_then(|entry| entry.0.get(at % ENTRY_SIZE / 4))
                .and_then(|word| word.to_le_bytes().get(at % 4).copied())
                .unwrap_or(0);
        }
    }

    /// The driver writes the table: aligned words of four bytes or eight; anything else is undefined and ignored.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        for (word, bytes) in data.as_chunks::<4>().0.iter().enumerate() {
            let at = offset.saturating_add(4 * word);
            let index = at / ENTRY_SIZE;
            let entry = self.table.get_mut(index);
            if let Some(word) = entry.and_then(|entry| entry.0.get_mut(at % ENTRY_SIZE / 4)) {
                *word = u32::from_le_bytes(*bytes);
                self.update(index);
            }
        }
    }

    /// The driver reads the pending bits: those vectors whose events wait for an unmask.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = offset.saturating_add(index).saturating_mul(8);
            *byte = (0..8).fold(0, |bits, bit| {
                let waits = self.vectors.is_pending(first.saturating_add(bit));
                bits | u8::from(waits) << bit
            });
        }
    }

    /// Brings a vector's irqfd in line with its masks and message.
    fn update(&mut self, index: usize) {
        let open = self.enabled && !self.masked;
        if let Some(entry) = self.table.get(index) {
            let wanted = entry.message().filter(|_| open);
            self.vectors.set(index, wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::{Error, Gsi};
    use std::sync::Mutex;

    /// Writes down what it is asked.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Msi for Notes {
        fn attach(&self, _: &EventFd, message: MsiMessage) -> Result<Gsi, Error> {
            self.0
                .lock()
                .unwrap()
                .push(format!("attach {:#x}={}", message.address, message.data));
            Ok(Gsi::new(24))
        }
        fn update(&self, _: Gsi, message: MsiMessage) -> Result<(), Error> {
            self.0
                .lock()
                .unwrap()
                .push(format!("update {:#x}={}", message.address, message.data));
            Ok(())
        }
        fn detach(&self, _: &EventFd, _: Gsi) -> Result<(), Error> {
            self.0.lock().unwrap().push("detach".into());
            Ok(())
        }
        fn vm_ends(&self) {}
    }

    impl Notes {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn write(msix: &mut Msix, word: usize, value: u32) {
        msix.write_table(4 * word, &value.to_le_bytes());
    }

    #[test]
    fn a_vector_is_attached_only_while_nothing_masks_it() {
        let notes = Arc::new(Notes::default());
        let mut msix = Msix::new(notes.clone(), 2).unwrap();
        write(&mut msix, 0, 0xfee0_0000);
        write(&mut msix, 2, 33);
        write(&mut msix, 3, 0);
        assert!(notes.take().is_empty(), "MSI-X is off");
        msix.control(CONTROL_ENABLE | CONTROL_MASK);
        assert!(notes.take().is_empty(), "the function is masked");
        msix.control(CONTROL_ENABLE);
        assert_eq!(notes.take(), ["attach 0xfee00000=33"]);
        write(&mut msix, 2, 34);
        assert_eq!(notes.take(), ["update 0xfee00000=34"]);
        write(&mut msix, 3, 1);
        assert_eq!(notes.take(), ["detach"]);
        write(&mut msix, 2, 35);
        write(&mut msix, 3, 0);
        assert_eq!(notes.take(), ["attach 0xfee00000=35"]);
        drop(msix);
        assert_eq!(notes.take(), ["detach"]);
    }

    #[test]
    fn a_masked_vector_shows_what_is_pending() {
        let msix = Msix::new(Arc::new(Notes::default()), 10).unwrap();
        msix.event(9).unwrap().write(1).unwrap();
        let mut bits = [0xff; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0, 2, 0, 0, 0, 0, 0, 0]);
        msix.read_pending(0, &mut bits);
        assert_eq!(bits[1], 2, "reading takes nothing away");
    }

    #[test]
    fn accesses_out_of_the_table_touch_nothing() {
        let mut msix = Msix::new(Arc::new(Notes::default()), 1).unwrap();
        msix.write_table(16, &[0xff; 4]);
        msix.write_table(12, &[0; 8]);
        msix.write_table(1, &[0xff; 4]);
        msix.write_table(0, &[0xff; 16]);
        msix.write_table(usize::MAX - 3, &[0xff; 4]);
        let mut entry = [0; 32];
        msix.read_table(0, &mut entry);
        assert_eq!(
            entry, [0; 32],
            "only the mask was written, by the 8 bytes at 12"
        );
        assert!(msix.event(1).is_none());
    }
}
