//! How often, and why, a vCPU leaves the guest for the VMM.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// The guest reads a port.
    IoIn,
    /// The guest writes a port.
    IoOut,
    /// The guest reads a device's memory.
    MmioRead,
    /// The guest writes a device's memory.
    MmioWrite,
    /// The controller wants the vCPU, or some other signal came.
    Interrupted,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [ExitKind; 6] = [
        ExitKind::IoIn,
        ExitKind::IoOut,
        ExitKind::MmioRead,
        ExitKind::MmioWrite,
        ExitKind::Interrupted,
        ExitKind::Other,
    ];

    /// The name of its counter.
    pub fn name(self) -> &'static str {
        match self {
            ExitKind::IoIn => "io_in",
            ExitKind::IoOut => "io_out",
            ExitKind::MmioRead => "mmio_read",
            ExitKind::MmioWrite => "mmio_write",
            ExitKind::Interrupted => "interrupted",
            ExitKind::Other => "other",
        }
    }

    /// What KVM returned with.
    pub fn of(exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Self {
        match exit {
            Ok(VcpuExit::IoIn(..)) => ExitKind::IoIn,
            Ok(VcpuExit::IoOut(..)) => ExitKind::IoOut,
            Ok(VcpuExit::MmioRead(..)) => ExitKind::MmioRead,
            Ok(VcpuExit::MmioWrite(..)) => ExitKind::MmioWrite,
            Ok(VcpuExit::Intr) | Err(_) => ExitKind::Interrupted,
            Ok(_) => ExitKind::Other,
        }
    }
}

/// The exits of one vCPU, which alone counts them. Nobody else writes to its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Exits([AtomicU64; ExitKind::ALL.len()]);

impl Exits {
    /// Counts one.
    pub fn count(&self, kind: ExitKind) {
        if let Some(counter) = self.0.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.0
            .get(kind as usize)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// The exits of all of `vcpus`, by name.
pub fn sum<'e>(
    vcpus: impl Iterator<Item = &'e Exits> + Clone,
) -> impl Iterator<Item = (&'static str, u64)> {
    ExitKind::ALL.into_iter().map(move |kind| {
        (
            kind.name(),
            vcpus.clone().map(|exits| exits.get(kind)).sum(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_counter_of_its_own() {
        let vcpus = [Exits::default(), Exits::default()];
        for (times, kind) in ExitKind::ALL.into_iter().enumerate() {
            for _ in 0..times {
                vcpus[0].count(kind);
                vcpus[1].count(kind);
            }
        }
        let sums: Vec<_> = sum(vcpus.iter()).map(|(_, count)| count).collect();
        assert_eq!(sums, [0, 2, 4, 6, 8, 10]);
    }
}
