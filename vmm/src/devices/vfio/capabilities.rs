//! The lists of a function's capabilities (PCI Express 6.0, 7.5.3 and 7.6.2), as the device has them.
//!
//! A list is walked a bounded number of steps: a device may be broken, and one that a guest had before may be malicious.

/// A capability: its id and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u16,
    /// Where it is in configuration space.
    pub at: usize,
}

/// Where the list begins.
const POINTER: usize = 0x34;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// The first byte behind the header.
const FIRST: usize = 0x40;
/// The end of what PCI has without extensions.
const END: usize = 0x100;
/// As many as there is room for.
const MOST: usize = (END - FIRST) / 4;
/// As many as there is room for in the extended part.
const MOST_EXTENDED: usize = (EXTENDED_END - END) / 4;
const EXTENDED_END: usize = 0x1000;

/// The capabilities in `space`, in the order of the list.
pub fn list(space: &[u8]) -> Vec<Capability> {
    let mut found: Vec<Capability> = Vec::new();
    if byte(space, STATUS) & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = usize::from(byte(space, POINTER) & !3);
    while (FIRST..END).contains(&at) && found.len() < MOST && is_new(&found, at) {
        let id = byte(space, at);
        if id == 0xff {
            break;
        }
        found.push(Capability { id: id.into(), at });
        at = usize::from(byte(space, at + 1) & !3);
    }
    found
}

/// The extended ones.
pub fn list_extended(space: &[u8]) -> Vec<Capability> {
    let mut found: Vec<Capability> = Vec::new();
    let mut at = END;
    while (END..EXTENDED_END).contains(&at) && found.len() < MOST_EXTENDED && is_new(&found, at) {
        let header = dword(space, at);
        if matches!(header, 0 | u32::MAX) {
            break;
        }
        found.push(Capability {
            id: header as u16,
            at,
        });
        at = (header >> 20) as usize & !3;
    }
    found
}

fn is_new(found: &[Capability], at: usize) -> bool {
    found.iter().all(|other| other.at != at)
}

/// A byte; 0 behind the end.
pub fn byte(space: &[u8], at: usize) -> u8 {
    space.get(at).copied().unwrap_or(0)
}

/// Two bytes, little-endian.
pub fn word(space: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([0, 1].map(|i| byte(space, at.saturating_add(i))))
}

/// Four bytes, little-endian.
pub fn dword(space: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(space, at.saturating_add(i))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_leads_to_itself_ends() {
        let mut space = [0; 4096];
        space[STATUS] = STATUS_CAPABILITIES;
        space[POINTER] = 0x40;
        space[0x40..0x42].copy_from_slice(&[1, 0x50]);
        space[0x50..0x52].copy_from_slice(&[5, 0x40]);
        let found = list(&space);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Capability { id: 5, at: 0x50 });
        space[0x100..0x104].copy_from_slice(&(1u32 | 1 << 16 | 0x100 << 20).to_le_bytes());
        assert_eq!(list_extended(&space).len(), 1);
    }

    #[test]
    fn a_list_into_the_header_or_out_of_the_space_ends() {
        let mut space = [0xff; 4096];
        assert!(list_extended(&space).is_empty());
        assert!(list(&space).is_empty());
        space[STATUS] = STATUS_CAPABILITIES;
        space[POINTER] = 0x10;
        assert!(list(&space).is_empty());
        assert!(list(&[]).is_empty());
        assert!(list_extended(&[0; 0x100]).is_empty());
    }
}
