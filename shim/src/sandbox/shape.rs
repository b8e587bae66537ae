//! How large a running VM is, and how large it can become: what it boots with stays, and what is beyond comes and goes.

use crate::memory_size::MemorySize;

use super::size::{Asked, Bounds, Size};

/// vCPUs that a VM has room for beyond those that it boots with, unless it boots with more: for each, its kernel sets some memory aside.
const ROOM_VCPUS: u32 = 16;
/// How many times the memory that it boots with a VM has room for: of that the kernel takes what it needs to keep account of the rest.
const ROOM_MEMORY: u64 = 8;

/// The VMM's smallest block of memory that comes and goes, and how many there are at most, which makes them larger
/// (`block_size` of the VMM's `memory/pluggable.rs`). A VMM that thinks otherwise refuses to start.
const BLOCK_MIN: u64 = 2;
const BLOCKS_MAX: u64 = 16 * 1024;

/// The size of a VM, now and at its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it boots with, and never has less than.
    pub boot: Size,
    /// What it has room for.
    pub most: Size,
    /// What it was told to have.
    pub now: Size,
}

/// Whether a VM may become smaller on the way to a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It only grows.
    Grow,
    /// It only shrinks.
    Shrink,
}

/// More memory than a running VM has room for.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the pod's VM would need {wanted} of memory, and one that has begun with {} can have {} while it runs; the pod's annotation orlop.dev/memory gives it more from its start", boot.memory, most.memory
)]
pub struct NoRoom {
    wanted: MemorySize,
    boot: Size,
    most: Size,
}

impl Shape {
    /// A VM that boots with `size`, in a pod that asks for `asked`. What a pod asks for by name does not change.
    pub fn new(size: Size, asked: &Asked, bounds: &Bounds) -> Self {
        let host = bounds.host.vcpus.max(size.vcpus);
        let vcpus = bounds.most.vcpus.min(ROOM_VCPUS).min(host).max(size.vcpus);
        let most = bounds.most.memory.mib();
        let room = most.min(size.memory.mib().saturating_mul(ROOM_MEMORY));
        let room = room.saturating_sub(size.memory.mib());
        let room = room - room % block(room);
        let most = Size {
            vcpus: asked.vcpus.map_or(vcpus, |_| size.vcpus),
            memory: match asked.memory {
                Some(_) => size.memory,
                None => size.memory.plus(MemorySize::of_mib(room)),
            },
        };
        Self {
            boot: size,
            most,
            now: size,
        }
    }

    /// `--cpus` and `--memory` of the VMM.
    pub fn arguments(&self) -> (String, String) {
        let mut vcpus = self.boot.vcpus.to_string();
        if self.most.vcpus > self.boot.vcpus {
            vcpus = format!("{vcpus},max={}", self.most.vcpus);
        }
        let mut memory = self.boot.memory.to_string();
        if self.may_have_more_memory() {
            memory = format!("{memory},max={}", self.most.memory);
        }
        (vcpus, memory)
    }

    /// Whether memory can come.
    pub fn may_have_more_memory(&self) -> bool {
        self.most.memory > self.boot.memory
    }

    /// The size that it should have for `wanted`, if that is another than it has, and if it is on the `way`. Memory comes in whole blocks; of
    /// vCPUs there may be too few, for those that are there do for all.
    ///
    /// # Errors
    /// When there is no room for as much memory.
    pub fn on_the_way(&self, wanted: Size, way: Way) -> Result<Option<Size>, NoRoom> {
        let beyond = wanted.memory.mib().saturating_sub(self.boot.memory.mib());
        let room = self.most.memory.mib() - self.boot.memory.mib();
        let beyond = beyond.next_multiple_of(block(room));
        if beyond > room {
            return Err(NoRoom {
                wanted: wanted.memory,
                boot: self.boot,
                most: self.most,
            });
        }
        let memory = self.boot.memory.plus(MemorySize::of_mib(beyond));
        let vcpus = wanted.vcpus.clamp(self.boot.vcpus, self.most.vcpus);
        let size = match way {
            Way::Grow => Size {
                vcpus: vcpus.max(self.now.vcpus),
                memory: memory.max(self.now.memory),
            },
            Way::Shrink => Size {
                vcpus: vcpus.min(self.now.vcpus),
                memory: memory.min(self.now.memory),
            },
        };
        Ok((size != self.now).then_some(size))
    }
}

/// In MiB, as `room` is.
fn block(room: u64) -> u64 {
    let least = room.div_ceil(BLOCKS_MAX);
    least.next_power_of_two().max(BLOCK_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(vcpus: u32, memory: u64) -> Size {
        Size {
            vcpus,
            memory: MemorySize::of_mib(memory),
        }
    }

    fn bounds(vcpus: u32, memory: u64) -> Bounds {
        Bounds {
            default: size(1, 256),
            guest: MemorySize::of_mib(64),
            most: size(vcpus, memory),
            host: size(vcpus, memory),
            room: None,
        }
    }

    #[test]
    fn a_vm_has_room_to_grow_unless_its_pod_asks_for_a_size() {
        let shape = |boot, asked: &Asked, bounds| Shape::new(boot, asked, &bounds).arguments();
        let none = Asked::default();
        let text = |vcpus: &str, memory: &str| (vcpus.to_owned(), memory.to_owned());
        assert_eq!(
            shape(size(1, 256), &none, bounds(4, 1024)),
            text("1,max=4", "256M,max=1024M")
        );
        assert_eq!(
            shape(size(2, 256), &none, bounds(64, 1 << 20)),
            text("2,max=16", "256M,max=2048M")
        );
        assert_eq!(
            shape(size(20, 256), &none, bounds(64, 256)),
            text("20", "256M")
        );
        // Whole blocks of 2 MiB.
        assert_eq!(
            shape(size(1, 193), &none, bounds(1, 1024)),
            text("1", "193M,max=1023M")
        );
        // Of more than half a TiB, in blocks of 64 MiB.
        assert_eq!(
            shape(size(1, 200_001), &none, bounds(1, 1 << 20)),
            text("1", "200001M,max=1048513M")
        );
        let asked = Asked {
            vcpus: Some(2),
            memory: Some(MemorySize::of_mib(512)),
            ..none
        };
        assert_eq!(
            shape(size(2, 512), &asked, bounds(64, 1 << 20)),
            text("2", "512M")
        );
    }

    #[test]
    fn a_vm_grows_by_blocks_and_shrinks_to_what_it_began_with() {
        let mut shape = Shape::new(size(1, 193), &Asked::default(), &bounds(4, 1024));
        assert_eq!(shape.on_the_way(size(1, 193), Way::Grow), Ok(None));
        assert_eq!(shape.on_the_way(size(1, 100), Way::Grow), Ok(None));
        let grown = shape.on_the_way(size(2, 300), Way::Grow).unwrap().unwrap();
        assert_eq!(grown, size(2, 301));
        shape.now = grown;
        assert_eq!(shape.on_the_way(size(1, 193), Way::Grow), Ok(None));
        assert_eq!(shape.on_the_way(size(2, 300), Way::Shrink), Ok(None));
        // Each by itself.
        assert_eq!(
            shape.on_the_way(size(4, 193), Way::Grow),
            Ok(Some(size(4, 301)))
        );
        assert_eq!(
            shape.on_the_way(size(4, 193), Way::Shrink),
            Ok(Some(size(2, 193)))
        );
        assert_eq!(
            shape.on_the_way(size(1, 64), Way::Shrink),
            Ok(Some(size(1, 193)))
        );
        // vCPUs make do; memory does not.
        assert_eq!(
            shape.on_the_way(size(9, 1023), Way::Grow),
            Ok(Some(size(4, 1023)))
        );
        let error = shape.on_the_way(size(1, 2000), Way::Grow).unwrap_err();
        let error = error.to_string();
        for word in ["2000M", "193M", "1023M", "orlop.dev/memory"] {
            assert!(error.contains(word), "no {word} in: {error}");
        }
    }

    #[test]
    fn a_vm_of_a_fixed_size_stays_what_it_is() {
        let asked = Asked {
            vcpus: Some(2),
            memory: Some(MemorySize::of_mib(512)),
            ..Asked::default()
        };
        let shape = Shape::new(size(2, 512), &asked, &bounds(8, 4096));
        for way in [Way::Grow, Way::Shrink] {
            assert_eq!(shape.on_the_way(size(2, 512), way), Ok(None));
        }
    }
}
